"""How convolutions are cut into register tiles and tasks: the cost model, and measured schedules."""
