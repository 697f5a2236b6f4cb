import pytest

from quantvm.jobs.evaluation.schema import RunResult

from .rows import model_row, run_row


@pytest.mark.parametrize(
    ("statuses", "changes", "code"),
    [
        (["passed", "passed"], {}, 0),
        (["passed", "skipped"], {}, 0),
        (["passed", "failed"], {}, 1),
        (["passed", "error"], {}, 3),
        (["passed", "unsupported"], {}, 3),
        (["failed", "error"], {}, 3),
        (["mistrusted"], {}, 0),
        (["mistrusted"], {"config__check_parity": "exact"}, 1),
        (["mistrusted"], {"config__min_top1": 0.0}, 1),
        (["passed", "error"], {"interrupted": True}, 130),
    ],
)
def test_the_exit_code_says_how_the_run_ended(statuses, changes, code):
    run = run_row(models=[model_row(status=status) for status in statuses], **changes)
    assert RunResult(run).exit_code == code
