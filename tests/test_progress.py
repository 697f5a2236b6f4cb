import io

from quantvm import progress
from quantvm.progress import IMAGES, PlainProgress, RichProgress, TitledProgress


def test_a_log_has_a_line_a_minute_with_the_speed_and_what_is_told(monkeypatch):
    now_s, stream = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s[0])
    with TitledProgress(PlainProgress(stream), "ResNet").task("evaluate", total=1000, unit=IMAGES) as task:
        for _ in range(100):
            now_s[0] += 1.5
            task.tell("model 1 of 2, about 3 min left in all")
            task.advance(6)
    assert stream.getvalue().splitlines() == [
        "ResNet: evaluate ...",
        "ResNet: evaluate: 24 %, 4.0 images/s, model 1 of 2, about 3 min left in all",
        "ResNet: evaluate: 48 %, 4.0 images/s, model 1 of 2, about 3 min left in all",
        "ResNet: evaluate: done in 150.0 s",
    ]


def test_a_bar_shows_what_is_told(capsys):
    with RichProgress().task("evaluate", total=2, unit=IMAGES) as task:
        task.tell("model 1 of 2")
        task.advance(2)
    assert "model 1 of 2" in capsys.readouterr().err
