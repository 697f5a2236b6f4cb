import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import quantvm
from quantvm.errors import ConfigError, UnsupportedOpError, WeightsError
from quantvm.jobs.evaluation.config import RunConfig

from .fakes import CLASSES, FakeWorkload, evaluate, scores_of


def off_by_a_step(x_f32):
    scores = scores_of(x_f32)
    scores[:, 7] += 0.25
    return scores


def fails(x_f32):
    raise RuntimeError("engine on fire")


def by_name(result):
    return {model["name"]: model for model in result.run["models"]}


def test_every_model_is_measured_on_every_image():
    result = evaluate(FakeWorkload(), batch_size=8)
    assert result.exit_code == 0
    assert [model["status"] for model in result.run["models"]] == ["passed", "passed"]
    model = by_name(result)["alpha"]
    assert model["n_images"] == 20
    assert model["torch"] == model["tvm"] == model["fp32"]
    assert model["torch"]["top1"] == 50  # the fake answers wrongly on odd images
    parity = model["parity"]
    assert parity["raw_outputs_identical"] == parity["raw_outputs_total"] == 20 * CLASSES
    assert parity["images_identical"] == parity["images_total"] == 20
    assert model["int8_mac_share"] == 0.9996
    assert model["calibration"] == {"n": 5, "source": "5 of the images themselves"}
    assert len(result.samples) == 40


def test_the_engines_get_the_very_same_array():
    fakes = FakeWorkload(models=("alpha",))
    evaluate(fakes, batch_size=8)
    fp32, torch, tvm = fakes.runners
    assert [len(x) for x in tvm.seen] == [8, 8, 4]
    for batches in zip(fp32.seen, torch.seen, tvm.seen, strict=True):
        assert batches[0] is batches[1] is batches[2]


def test_the_result_is_run_json_and_does_not_depend_on_the_batch_size():
    rows = []
    for batch_size in (1, 7, 20):
        result = evaluate(FakeWorkload(), batch_size=batch_size)
        assert json.loads(json.dumps(result.run, allow_nan=False)) == result.run
        rows.append([{**model, "duration_s": 0} for model in result.run["models"]])
    assert rows[0] == rows[1] == rows[2]


def test_differences_are_reported_and_pass_unless_a_check_forbids_them():
    def run(check):
        fakes = FakeWorkload(tvm={"beta": off_by_a_step})
        return evaluate(fakes, check_parity=check)

    result = run(None)
    assert result.exit_code == 0
    beta = by_name(result)["beta"]
    assert beta["parity"]["images_identical"] == 0
    assert beta["parity"]["max_lsb"] == 1
    assert "raw outputs differ" in beta["reason"]
    exact = run("exact")
    assert exact.exit_code == 1
    assert [model["status"] for model in exact.run["models"]] == ["passed", "failed"]
    assert run("lsb:1").exit_code == 0
    assert run("lsb:0").exit_code == 1


def test_a_failing_model_leaves_a_row_and_the_others_go_on(tmp_path):
    result = evaluate(FakeWorkload(tvm={"alpha": fails}), out=tmp_path / "run")
    assert result.exit_code == 3
    alpha, beta = result.run["models"]
    assert (alpha["status"], alpha["reason"]) == ("error", "RuntimeError: engine on fire")
    assert alpha["torch"] is None
    assert alpha["compile_s"] == 2.0  # what was known before is kept
    assert "log.txt" in alpha["remedy"]
    assert beta["status"] == "passed"
    assert {sample["model"] for sample in result.samples} == {"beta"}
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "Traceback" in log
    assert "in fails" in log


def test_unsupported_operators_have_a_status_of_their_own():
    class Fakes(FakeWorkload):
        def compile(self, program, numerics):
            raise UnsupportedOpError("1 unsupported op: quantized::lstm")

    result = evaluate(Fakes())
    assert result.exit_code == 3
    assert {model["status"] for model in result.run["models"]} == {"unsupported"}
    assert result.run["models"][0]["reason"] == "1 unsupported op: quantized::lstm"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda x: None, "TVM returned no output"),
        (lambda x: scores_of(x)[:1], "TVM returned float32 (1, 10)"),
        (lambda x: scores_of(x)[:, :9], "TVM returned (8, 9), PyTorch (8, 10)"),
        (lambda x: scores_of(x).astype(np.float64), "TVM returned float64"),
    ],
)
def test_a_missing_or_misshapen_output_fails(answer, text):
    result = evaluate(FakeWorkload(tvm={"alpha": answer}))
    alpha = by_name(result)["alpha"]
    assert alpha["status"] == "failed"
    assert text in alpha["reason"]
    assert result.exit_code == 1


def test_constant_outputs_are_mistrusted_and_meet_no_check():
    def run(**options):
        fakes = FakeWorkload(models=("alpha",))
        fakes.torch = lambda x: np.full((len(x), CLASSES), 1.5, dtype=np.float32)
        return evaluate(fakes, **options)

    result = run()
    assert result.run["models"][0]["status"] == "mistrusted"
    assert result.exit_code == 0
    assert run(check_parity="exact").exit_code == 1


def test_accuracy_below_the_bound_is_exit_1():
    assert evaluate(FakeWorkload(), min_top1=50.0).exit_code == 0
    assert evaluate(FakeWorkload(), min_top1=50.1).exit_code == 1


def test_a_model_without_weights_is_skipped_with_reason_and_remedy():
    result = evaluate(FakeWorkload(unavailable=("alpha",)))
    alpha = by_name(result)["alpha"]
    assert (alpha["status"], alpha["reason"]) == ("skipped", "there is no network")
    assert alpha["remedy"] == "Run: quantvm fetch weights alpha"
    assert alpha["weights"] is None
    assert by_name(result)["beta"]["status"] == "passed"
    assert result.exit_code == 0


class NoWork(FakeWorkload):
    """Fails the test if any model is touched."""

    def quantized(self, *arguments):
        raise AssertionError("work has begun")


def test_a_named_model_without_weights_is_an_error_before_any_work():
    fakes = NoWork(models=("alpha", "beta", "gamma"), unavailable=("beta", "gamma"))
    with pytest.raises(WeightsError, match=r"(?s)no weights for beta.*no weights for gamma"):
        evaluate(fakes, models=("alpha", "beta", "gamma"))


def test_no_weights_at_all_is_an_error():
    with pytest.raises(WeightsError, match=r"none of the models:\n  alpha: there is no network"):
        evaluate(NoWork(unavailable=("alpha", "beta")))


def test_wrong_options_and_unknown_models_come_in_one_error():
    with pytest.raises(ConfigError, match=r"(?s)3 wrong options:.*scheme.*model 'gamma'.*model 'delta'"):
        evaluate(NoWork(), models=("alpha", "gamma", "delta"), scheme="x")


def test_options_that_the_machine_cannot_serve_are_an_error_before_any_work():
    class Fakes(NoWork):
        def unsupported_options(self, options):
            return ["engine: none here"]

    with pytest.raises(ConfigError, match="engine: none here"):
        evaluate(Fakes())


@pytest.mark.parametrize("models", [(), ("beta",)])
def test_registered_models_are_not_scored_by_the_order_of_folders(models, tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(ConfigError, match=r"class_map: sorted numbers the folders.*beta\. Name the folders by wnid"):
        evaluate(NoWork(), models=models, data=str(tmp_path), class_map="sorted")


def test_a_model_named_twice_is_evaluated_once():
    result = evaluate(FakeWorkload(), models=("beta", "alpha", "beta"))
    assert [model["name"] for model in result.run["models"]] == ["beta", "alpha"]


def test_threads_reach_both_engines_and_the_report(monkeypatch):
    fakes = FakeWorkload()
    result = evaluate(fakes)
    assert fakes.threads == result.run["environment"]["threads"] == result.run["config"]["threads"] == 3
    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    evaluate(fakes)
    assert fakes.threads == 2
    evaluate(fakes, threads=5)
    assert fakes.threads == 5


class Interrupted(FakeWorkload):
    """Ctrl-C comes when the second model sees its second batch."""

    def tvm_runner(self, artifact):
        calls = []

        def answer(x_f32):
            calls.append(1)
            if artifact.name == "beta" and len(calls) == 2:
                raise KeyboardInterrupt
            return scores_of(x_f32)

        return self.runner(answer)


def test_an_interruption_saves_what_was_done(tmp_path):
    result = evaluate(Interrupted(models=("alpha", "beta", "gamma")), out=tmp_path / "run", batch_size=8)
    assert result.exit_code == 130
    alpha, beta, gamma = result.run["models"]
    assert alpha["status"] == "passed"
    assert (beta["status"], beta["reason"]) == ("error", "interrupted after 8 of 20 images")
    assert beta["n_images"] == beta["parity"]["images_total"] == 8
    assert (gamma["status"], gamma["reason"]) == ("skipped", "the run was interrupted before its turn")
    saved = json.loads((tmp_path / "run" / "run.json").read_text())
    assert saved == result.run
    assert saved["interrupted"] is True
    assert pq.read_table(tmp_path / "run" / "samples.parquet").num_rows == 28


def test_the_run_folder_is_there_after_each_model(tmp_path):
    folder, seen = tmp_path / "run", []

    class Watcher:
        def on_start(self, run):
            seen.append(None)

        def on_model(self, model):
            path = folder / "run.json"
            seen.append(len(json.loads(path.read_text())["models"]) if path.exists() else 0)

    evaluate(FakeWorkload(models=("a", "b", "c")), out=folder, observer=Watcher())
    assert seen == [None, 0, 1, 2]
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    assert names == ["log.txt", "manifest.json", "report.md", "run.json", "samples.parquet"]


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(FakeWorkload())
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_quantized_already_has_no_float_model():
    class Fakes(FakeWorkload):
        def quantized(self, *arguments):
            program = super().quantized(*arguments)
            program.float_module, program.quantvm_n_calibration, program.quantvm_scheme = None, 0, "per-tensor"
            return program

    result = evaluate(Fakes(models=("alpha",)))
    (model,) = result.run["models"]
    assert model["fp32"] is None
    assert model["scheme"] == "per-tensor"
    assert model["calibration"] == {"n": 0, "source": "none, the weights bring their own ranges"}
    assert result.samples[0]["fp32_top5"] is None


def test_the_package_is_the_function():
    assert evaluate(FakeWorkload(), seed=3).run["seed"] == 3
    assert evaluate(FakeWorkload(), RunConfig(seed=4)).run["seed"] == 4
    with pytest.raises(ConfigError, match="one or the other"):
        quantvm.evaluate(RunConfig(), seed=1)
    with pytest.raises(TypeError, match="sead"):
        quantvm.evaluate(sead=1)


def test_each_numerics_has_a_row_of_its_own_and_only_torch_is_checked_for_parity():
    fakes = FakeWorkload(tvm={"alpha integer": lambda x: scores_of(x) + 1})
    result = evaluate(fakes, numerics=("torch", "integer"), check_parity="exact")
    rows = [(model["name"], model["numerics"], model["status"]) for model in result.run["models"]]
    assert rows == [
        ("alpha", "torch", "passed"), ("alpha", "integer", "passed"),
        ("beta", "torch", "passed"), ("beta", "integer", "passed"),
    ]  # fmt: skip
    exact, near = result.run["models"][:2]
    assert exact["parity"]["raw_outputs_identical"] == exact["parity"]["raw_outputs_total"]
    assert near["parity"]["raw_outputs_identical"] == 0
    assert (exact["latency_ms"], near["latency_ms"]) == (2.0, 3.0)
    assert result.run["config"]["numerics"] == ["torch", "integer"]
    assert {(row["model"], row["numerics"]) for row in result.samples} == {(name, kind) for name, kind, _ in rows}
    assert result.exit_code == 0


def test_with_one_numerics_no_time_is_taken():
    assert evaluate(FakeWorkload()).run["models"][0]["latency_ms"] is None


def test_a_model_that_is_skipped_or_interrupted_has_a_row_for_each_numerics():
    def interrupts(x):
        raise KeyboardInterrupt

    fakes = FakeWorkload(models=("alpha", "beta", "gamma"), tvm={"beta": interrupts}, unavailable=("alpha",))
    result = evaluate(fakes, numerics=("torch", "integer:away"))
    rows = [(model["name"], model["numerics"], model["status"]) for model in result.run["models"]]
    kinds = ("torch", "integer:away")
    statuses = {"alpha": "skipped", "beta": "error", "gamma": "skipped"}
    assert rows == [(name, kind, status) for name, status in statuses.items() for kind in kinds]


@pytest.mark.parametrize("wrong", [(), ("torch", "float"), ("integer:down",)])
def test_numerics_that_are_unknown(wrong):
    with pytest.raises(ConfigError, match="expected one or more of torch, qdq, integer, integer:upward"):
        evaluate(FakeWorkload(), numerics=wrong)


def test_each_flow_has_a_row_and_agreement_is_told_for_every_two_sides():
    fakes = FakeWorkload(models=("alpha",), tvm={"alpha fx torch": lambda x: -scores_of(x)})
    result = evaluate(fakes, flows=("eager", "fx"))
    rows = [(row["flow"], row["status"], row["parity"]["images_identical"]) for row in result.run["models"]]
    assert rows == [("eager", "passed", 20), ("fx", "passed", 0)]
    (agreement,) = result.run["agreement"]
    assert agreement["sides"] == ["fp32", "eager PyTorch", "eager TVM", "fx PyTorch", "fx TVM"]
    assert agreement["same_top1"][0] == [100, 100, 100, 100, 0]
    assert agreement["same_top1"][4] == [0, 0, 0, 0, 100]
    assert agreement["top1"][:4] == [result.run["models"][0]["torch"]["top1"]] * 4
    assert {row["flow"] for row in result.samples} == {"eager", "fx"}


def test_a_flow_that_a_model_does_not_have_is_skipped_with_the_others_named():
    result = evaluate(FakeWorkload(models=("graph_only",)), flows=("eager", "fx"))
    skipped, done = result.run["models"]
    assert (skipped["status"], done["status"]) == ("skipped", "passed")
    assert skipped["reason"] == "PyTorch cannot quantize it by the flow eager"
    assert skipped["remedy"] == "--flow fx or --flow pt2e"
    assert result.run["agreement"] == []


def test_without_a_flow_each_model_is_quantized_by_the_first_that_it_has():
    found = evaluate(FakeWorkload(models=("alpha", "graph_only"))).run["models"]
    assert [(row["name"], row["flow"], row["status"]) for row in found] == [
        ("alpha", "eager", "passed"), ("graph_only", "fx", "passed"),
    ]  # fmt: skip


def test_flows_that_are_unknown():
    with pytest.raises(ConfigError, match=r"flow: .*expected one or more of eager, fx, pt2e"):
        evaluate(FakeWorkload(), flows=("eager", "export"))
