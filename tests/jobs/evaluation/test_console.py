import io

from quantvm.jobs.evaluation.console import ConsolePrinter

from .rows import SKIPPED, model_row, run_row


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(stream):
    printer = ConsolePrinter(stream)
    run = run_row(config__weights="random")
    printer.on_start(run)
    printer.on_model(model_row())
    printer.on_end(run)
    return stream.getvalue()


def test_a_pipe_gets_plain_text_with_the_notice_first():
    text = printed(io.StringIO())
    assert text.startswith("RANDOM WEIGHTS")
    assert "\x1b" not in text
    assert "mobilenet_v3 small|87.50|95.00|87.50|95.00\n" in text


def test_a_skipped_model_waits_for_the_end():
    stream = io.StringIO()
    ConsolePrinter(stream).on_model(SKIPPED)
    assert stream.getvalue() == ""


def test_a_terminal_gets_colours_unless_they_are_unwanted(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mStatus: passed\x1b[0m" in printed(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed(Terminal())
