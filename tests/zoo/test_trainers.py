"""The recipes of ``docs/your-own-network.md`` with the real packages, as they stand there."""

import pytest
import torch

from tests.own_network import run_blocks
from tests.zoo.networks import BERT, topologies
from truly_sparse import RigL, sparsify

pytestmark = pytest.mark.zoo


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def same_topologies(one, other):
    return all(map(torch.equal, topologies(one).values(), topologies(other).values()))


def test_lightning_rewires_and_a_continued_run_ends_as_an_uninterrupted_one():
    import lightning

    page = run_blocks("convert", "lightning")
    data = torch.utils.data.TensorDataset(page["inputs"], page["labels"])
    loader = torch.utils.data.DataLoader(data, batch_size=64)

    class Module(lightning.LightningModule):
        def __init__(self, seed=0):
            super().__init__()
            self.network = sparsify(page["network"], sparsity=0.9, seed=seed)

        def training_step(self, batch, _):
            loss = page["cross_entropy"](self.network(batch[0]), batch[1])
            self.log("loss", loss, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=3e-3)

    def fit(module, epochs, resume=None):
        rewiring = page["Rewiring"](RigL(every=5, until=1.0, decay="constant"))
        quiet = {name: False for name in ("logger", "enable_progress_bar", "enable_model_summary")}
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=[rewiring], accumulate_grad_batches=2, **quiet
        )
        trainer.fit(module, loader, ckpt_path=resume)
        return trainer, rewiring.driver

    whole, half, continued = Module(), Module(), Module(seed=1)
    first = topologies(whole)
    _, driver = fit(whole, 6)
    assert driver.steps == 24 and driver.rewirings == 4  # a step is two batches
    assert not any(torch.equal(first[name], now) for name, now in topologies(whole).items())
    fit(half, 3)[0].save_checkpoint("half.ckpt")
    _, driver = fit(continued, 6, resume="half.ckpt")
    assert driver.steps == 24 and driver.rewirings == 4
    assert same_topologies(whole, continued)
    torch.testing.assert_close(continued.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_trainer_rewires_and_a_continued_run_ends_as_an_uninterrupted_one():
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    page = run_blocks("convert", "trainer")
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, 100, (96, 12), generator=generator)
    data = [{"input_ids": each, "labels": int(each[0] > 50)} for each in words]
    torch.manual_seed(0)
    network = BertForSequenceClassification(BertConfig(**BERT))
    arguments = TrainingArguments(
        "runs",
        num_train_epochs=3,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        save_strategy="epoch",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )

    def trained(seed, resume=None):
        model = sparsify(network, sparsity=0.8, seed=seed)
        first = topologies(model)
        rewiring = page["Rewiring"](RigL(every=2, until=1.0))
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[rewiring])
        trainer.train(resume_from_checkpoint=resume)
        assert rewiring.driver.steps == 9 and rewiring.driver.rewirings == 4
        assert any(not torch.equal(first[name], now) for name, now in topologies(model).items())
        return model

    whole = trained(seed=0)
    continued = trained(seed=1, resume="runs/checkpoint-3")
    assert same_topologies(whole, continued)
    torch.testing.assert_close(continued.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_accelerate_rewires_and_restores_its_state():
    page = run_blocks("convert", "accelerate")
    driver, model = page["driver"], page["model"]
    assert driver.steps == 80 and driver.rewirings == 6
    assert page["loss"] < 0.5
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    driver.load_state_dict(driver.state_dict() | {"steps": 0})
    model.load_state_dict(sparsify(page["network"], sparsity=0.9, seed=1).state_dict())
    page["accelerator"].load_state("state")
    assert driver.steps == 80
    torch.testing.assert_close(model.state_dict(), trained, rtol=0, atol=0)


def test_onnxruntime_computes_what_the_sparse_model_computes():
    page = run_blocks("convert", "train", "onnx")
    torch.testing.assert_close(torch.from_numpy(page["logits"]), page["model"](page["inputs"]).detach())
