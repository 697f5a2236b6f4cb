import pytest

from quantvm.jobs.evaluation.outlook import Outlook, time_text


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_later_models_are_expected_to_be_as_fast_as_those_before():
    clock = Clock()
    outlook = Outlook(3, 100, clock)
    clock.now_s = 30.0  # made
    outlook.begin(100)
    assert (outlook.left_s(), outlook.text()) == (None, "model 1 of 3")
    clock.now_s = 50.0
    outlook.advance(10)  # 2 s an image
    assert outlook.left_s() == 90 * 2 + 2 * (30 + 100 * 2)
    assert outlook.text() == "model 1 of 3, about 11 min left in all"  # 640 s
    clock.now_s = 140.0
    outlook.advance(90)  # 1.1 s an image
    clock.now_s = 150.0
    outlook.begin(40)  # of a resumed run
    assert outlook.left_s() == pytest.approx(40 * 1.1 + 20 + 100 * 1.1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (29, "29 s"), (3560, "59 min"), (3600, "1 h 00 min"), (40000, "11 h 07 min")]
)
def test_durations_as_text(seconds, text):
    assert time_text(seconds) == text
