"""``--tracking mlflow``: MONAI's handlers find our ids, and log loss, rates and metrics."""

from __future__ import annotations

import pytest
import torch

from conftest import labelled_case
from distributed_worker import PLAIN
from scripts.files import write_json

mlflow = pytest.importorskip("mlflow", reason="pip install -e '.[tracking]'")
pytest.importorskip("sqlalchemy")


def test_a_local_store_holds_the_curves_of_a_training(tmp_path):
    from monai.bundle import create_workflow

    from conftest import BUNDLE

    dataset, output = tmp_path / "data", tmp_path / "output"
    (dataset / "other").mkdir(parents=True)
    entry = labelled_case(dataset)
    other = labelled_case(dataset / "other") | {"subject": "other"}
    content = {"training": [entry] * 2, "validation": [other], "test": []}
    write_json(dataset / "dataset.json", content)
    overrides = PLAIN | {"epochs": 2, "val_interval": 1, "batch_size": 1, "run_name": "tiny"}
    run = create_workflow(
        config_file=str(BUNDLE / "configs" / "train.json"),
        workflow_type="train",
        tracking="mlflow",
        bundle_root=str(BUNDLE),
        dataset_dir=str(dataset),
        output_dir=str(output),
        **overrides,
    )
    run.run()
    client = mlflow.MlflowClient(f"sqlite:///{output}/mlruns.db")
    experiment = client.get_experiment_by_name("monai_experiment")
    (found,) = client.search_runs(experiment.experiment_id)
    assert found.info.run_name == "tiny"
    assert found.info.status == "FINISHED"
    assert found.data.params["max_epochs"] == "2"

    def curve(name):
        history = client.get_metric_history(found.info.run_id, name)
        return {metric.step: metric.value for metric in history}

    losses = curve("train_loss")
    assert list(losses) == [1, 2, 3, 4]
    assert all(torch.isfinite(torch.tensor(list(losses.values()))))
    assert curve("lr_group_0")[1] <= run.parser.get_parsed_content("rotation_lr")
    assert set(run.evaluator.state.metrics) <= set(found.data.metrics)
    rotation = curve("rotation_deg")
    assert list(rotation) == [1, 2]
    assert rotation[2] == pytest.approx(run.evaluator.state.metrics["rotation_deg"])
    assert len(list(output.glob("config_*.json"))) == 1
