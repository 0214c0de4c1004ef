import copy
import math

import pytest
import torch
from tiny_training import loader, samples, untrained_vit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from going_modular import engine, utils
from going_modular.training import progress
from going_modular.training.checkpoints import Checkpoint
from going_modular.utils import give_random_values

# Metrics


def test_metrics_are_averages_over_samples_with_a_ragged_last_batch():
    data, model = samples(count=5), nn.Linear(4, 3)
    features, labels = data.tensors
    logits = model(features)
    expected_loss = nn.functional.cross_entropy(logits, labels).item()
    expected_acc = (logits.argmax(1) == labels).float().mean().item()
    loss_fn = nn.CrossEntropyLoss()
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    tested = engine.test_step(model, loader(data), loss_fn, "cpu")
    trained = engine.train_step(model, loader(data), loss_fn, still, "cpu")
    assert tested == pytest.approx((expected_loss, expected_acc), abs=1e-6)
    assert trained == pytest.approx((expected_loss, expected_acc), abs=1e-6)

    batches = [loss_fn(model(x), y).item() for x, y in loader(data)]
    assert abs(sum(batches) / len(batches) - expected_loss) > 1e-3  # another number


def test_225_images_weigh_the_same():
    """225 = 7 · 32 + 1: only the last label is wrong, so accuracy is 224/225."""
    labels = torch.zeros(225, dtype=torch.long)
    labels[-1] = 1
    model = nn.Linear(1, 2)
    model.weight.data.zero_()
    model.bias.data = torch.tensor([1.0, 0.0])
    data = loader(TensorDataset(torch.zeros(225, 1), labels), batch_size=32)
    _, accuracy = engine.test_step(model, data, nn.CrossEntropyLoss(), "cpu")
    assert accuracy == pytest.approx(224 / 225)


def test_train_step_does_what_a_plain_loop_does():
    data, model = samples(count=7), nn.Linear(4, 3)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    engine.train_step(model, loader(data), nn.CrossEntropyLoss(), optimizer, "cpu")
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1)
    for x, y in loader(data):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        optimizer.step()
    assert torch.equal(model.weight, plain.weight)


def test_confusion_matrix_rows_are_true_classes():
    predictions, labels = torch.tensor([0, 2, 2, 1, 2]), torch.tensor([0, 0, 2, 1, 1])
    expected = [[1, 0, 1], [0, 1, 1], [0, 0, 1]]
    assert engine.confusion_matrix(predictions, labels, 3).tolist() == expected


# Training


def run(seed, epochs=3):
    torch.manual_seed(seed)
    vit = untrained_vit()
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(11, 3, 16, 16, generator=generator), torch.arange(11) % 3)
    return engine.train(
        vit,
        loader(data, 4, shuffle=True),
        loader(data, 4),
        torch.optim.AdamW(vit.parameters(), lr=1e-2),
        nn.CrossEntropyLoss(),
        epochs,
        "cpu",
        progress=False,
    )


def test_same_seed_same_numbers():
    first, second = run(seed=1), run(seed=1)
    assert first == second
    assert first != run(seed=2)
    assert [len(values) for values in first.values()] == [3] * 7
    assert list(first)[:4] == ["train_loss", "train_acc", "test_loss", "test_acc"]
    assert list(first)[4:] == ["collapsed", "lr", "grad_norm"]
    assert first["train_loss"][-1] < first["train_loss"][0]


def test_each_epoch_has_an_order_of_its_own_and_a_second_run_repeats_it():
    seen = []

    class Recorder(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.append(x[:, 0].tolist())
            return super().forward(x)

    data = TensorDataset(torch.arange(6.0).unsqueeze(1), torch.zeros(6, dtype=torch.long))
    batches, model = loader(data, 6, shuffle=True), Recorder(1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(2):
        engine.train(model, batches, batches, optimizer, nn.CrossEntropyLoss(), 2, "cpu", False)
    first, second, third, fourth = seen
    assert first != second and [first, second] == [third, fourth]
    assert sorted(first) == list(range(6))


def test_a_batch_looked_at_after_training_is_the_one_from_before():
    data, model = loader(samples(8), 4, shuffle=True), nn.Linear(4, 3)
    before = next(iter(data))[0]
    arguments = (torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    engine.train(model, data, data, *arguments, 2, "cpu", progress=False)
    assert torch.equal(next(iter(data))[0], before)


def test_no_data_says_so():
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="no batches"):
        engine.test_step(model, [], nn.CrossEntropyLoss(), "cpu")


def test_progress_is_one_line_an_epoch(capsys):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    data = loader(samples())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine.train(model, data, data, optimizer, nn.CrossEntropyLoss(), 2, "cpu")
    output = capsys.readouterr()
    lines = [line.rsplit("\r", 1)[-1] for line in output.out.split("\n")]
    assert len(lines) == 3 and lines[2] == output.err == ""
    assert lines[1].startswith("epoch 2/2 | train loss ") and "test loss" in lines[1]


def test_a_loss_that_is_not_finite_stops_the_run_with_epoch_and_batch():
    data = samples(count=5)
    data.tensors[0][3] = math.nan  # in the second batch of two
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = (optimizer, nn.CrossEntropyLoss(), 3, "cpu", False)
    with pytest.raises(FloatingPointError, match=r"epoch 1, batch 2.*learning rate"):
        engine.train(model, loader(data), loader(samples()), *arguments)
    assert model.weight.isfinite().all()  # the bad step was not taken
    with pytest.raises(FloatingPointError, match="evaluation after epoch 1, batch 2"):
        engine.train(model, loader(samples()), loader(data), *arguments)


class CountReads(TorchDispatchMode):
    """Counts how often a number is read from a tensor, for which a GPU would be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_waits_for_a_gpu(monkeypatch, accumulate):
    """As many numbers are read in 4 steps as in 40: those of the whole epoch."""
    monkeypatch.setattr(engine, "reads_are_free", lambda device: False)
    counts = []
    for batches in (4, 40):
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = engine.Method(clip_norm=1.0, accumulate=accumulate)
        with CountReads() as reads:
            engine.train_step(
                model,
                loader(samples(2 * batches)),
                nn.CrossEntropyLoss(),
                optimizer,
                "cpu",
                method=method,
            )
        counts.append(reads.count)
    assert counts[0] == counts[1]


def test_a_gpu_hears_of_a_bad_loss_before_anything_is_saved(monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "reads_are_free", lambda device: False)
    data = samples(count=5)
    data.tensors[0][3] = math.nan
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = (optimizer, nn.CrossEntropyLoss(), 3, "cpu", False)
    checkpoint = Checkpoint(tmp_path / "c.pt")
    with pytest.raises(FloatingPointError, match=r"epoch 1, at batch 3 or before"):
        engine.train(model, loader(data), loader(samples()), *arguments, checkpoint=checkpoint)
    assert not checkpoint.path.exists()
    monkeypatch.setattr(progress, "CHECK_EVERY", 2)  # long epochs are not waited for
    with pytest.raises(FloatingPointError, match=r"epoch 1, at batch 2 or before"):
        engine.train(nn.Linear(4, 3), loader(data), loader(samples()), *arguments)
    with pytest.raises(FloatingPointError, match="the evaluation after epoch 1"):
        engine.test_step(nn.Linear(4, 3), loader(data), nn.CrossEntropyLoss(), "cpu")


# Frozen parts


def test_frozen_vit_stays_in_eval_mode_while_its_head_trains():
    vit = give_random_values(untrained_vit(dropout=0.5))
    for name, parameter in vit.named_parameters():
        parameter.requires_grad = name.startswith("head")
    engine.set_training_mode(vit)
    training = {name for name, module in vit.named_modules() if module.training}
    assert training == {"", "head"}
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(vit(images), vit(images))  # no dropout is left


def test_dropout_of_a_trained_head_stays_on():
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)),
        nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)),
    )
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    before = model[0][1].running_mean.clone()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    engine.train_step(model, loader(samples()), nn.CrossEntropyLoss(), optimizer, "cpu")
    assert torch.equal(model[0][1].running_mean, before)
    assert not model[0][2].training and model[1][0].training


def test_nothing_frozen_means_everything_trains():
    vit = untrained_vit()
    vit.eval()
    engine.set_training_mode(vit)
    assert all(module.training for module in vit.modules())


# Features


def test_a_head_on_features_is_the_head_of_the_whole_model():
    vit = give_random_values(untrained_vit(dropout=0.5))
    for name, parameter in vit.named_parameters():
        parameter.requires_grad = name.startswith("head")
    head = copy.deepcopy(vit.head)
    data = TensorDataset(torch.randn(11, 3, 16, 16), torch.arange(11) % 3)

    backbone = copy.deepcopy(vit)
    backbone.head = nn.Identity()
    features = engine.extract_features(backbone, loader(data, 4), "cpu")
    assert features.tensors[0].shape == (11, 8)
    assert features.tensors[1].tolist() == data.tensors[1].tolist()
    head(features.tensors[0]).sum().backward()  # features can be trained on as they are
    head.zero_grad()

    results = []
    for model, dataset in ((vit, data), (head, features)):
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=0.01)
        batches = loader(dataset, 4, shuffle=True), loader(dataset, 4)
        results.append(
            engine.train(model, *batches, optimizer, nn.CrossEntropyLoss(), 5, "cpu", False)
        )
    for name in results[0]:
        assert results[0][name] == pytest.approx(results[1][name], abs=1e-5)
    torch.testing.assert_close(vit.head.weight, head.weight, rtol=1e-4, atol=1e-5)


# Method: what a step is beyond optimizer and loss


def trained(batch_size, accumulate=1, count=11, **settings):
    """A layer after two epochs of SGD, and the steps it took."""
    torch.manual_seed(0)
    model, steps = nn.Linear(4, 3), []
    engine.train(
        model,
        loader(samples(count), batch_size, shuffle=True),
        loader(samples(count)),
        torch.optim.SGD(model.parameters(), lr=0.5),
        nn.CrossEntropyLoss(),
        2,
        "cpu",
        progress=False,
        method=engine.Method(accumulate=accumulate, **settings),
        on_step=lambda epoch, step: steps.append((epoch, step)),
    )
    return model, steps


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulated_batches_are_one_batch_the_ragged_last_one_too(parts):
    """11 = 6 + 5 images: in parts of two the last one has one image."""
    whole, whole_steps = trained(6)
    split, split_steps = trained(6 // parts, accumulate=parts)
    torch.testing.assert_close(split.weight, whole.weight, rtol=0, atol=1e-6)
    assert [(e, s.samples) for e, s in split_steps] == [(1, 6), (1, 5), (2, 6), (2, 5)]
    for (_, one), (_, two) in zip(whole_steps, split_steps, strict=True):
        assert two[:3] == pytest.approx(one[:3], abs=1e-5)
        assert two.grad_norm == pytest.approx(one.grad_norm, abs=1e-6)


@pytest.mark.parametrize("mix", [v2.MixUp(num_classes=3), v2.CutMix(num_classes=3)])
def test_accumulated_batches_are_mixed_as_one(mix):
    """The partner of an image may be in another part, and all parts have one share."""
    images = torch.rand(7, 3, 6, 6)
    labels = torch.arange(7) % 3
    torch.manual_seed(1)
    whole = mix(images, labels)
    torch.manual_seed(1)
    parts = engine.mix_parts(mix, list(zip(images.split(3), labels.split(3), strict=True)))
    assert [len(part) for part, _ in parts] == [3, 3, 1]
    for together, apart in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(together, torch.cat(apart))


def test_a_step_in_parts_is_the_step_of_one_batch_with_mixup_too():
    """Parts that are mixed by themselves make another step."""

    def mix(features, labels):  # MixUp takes images only
        images, labels = v2.MixUp(num_classes=3)(features[:, None, None], labels)
        return images[:, 0, 0], labels

    def mixed(batch_size, accumulate):
        return trained(batch_size, accumulate, mix=mix)

    (whole, whole_steps), (split, split_steps) = mixed(6, 1), mixed(2, 3)
    torch.testing.assert_close(split.weight, whole.weight, rtol=0, atol=1e-6)
    for (_, one), (_, two) in zip(whole_steps, split_steps, strict=True):
        assert two[:4] == pytest.approx(one[:4], abs=1e-5)


def test_images_that_only_stand_in_are_not_mixed():
    stand_in = (torch.ones(1, 3, 6, 6), torch.zeros(0, dtype=torch.long))
    real = (torch.rand(2, 3, 6, 6), torch.tensor([0, 1]))
    parts = engine.mix_parts(v2.MixUp(num_classes=3), [real, stand_in])
    assert parts[0][1].shape == (2, 3) and parts[1] is stand_in
    assert engine.mix_parts(v2.MixUp(num_classes=3), [stand_in]) == [stand_in]


def test_clipping_shortens_the_gradient_and_keeps_its_direction():
    plain, steps = trained(11)
    clipped, clipped_steps = trained(11, clip_norm=0.01)
    torch.manual_seed(0)
    start = nn.Linear(4, 3).weight
    norms = [step.grad_norm for _, step in steps]
    assert min(norms) > 0.01
    assert clipped_steps[0][1].grad_norm == norms[0]  # that before clipping
    moved = (clipped.weight - start).norm().item()
    assert 0 < moved <= 2 * 0.5 * 0.01 + 1e-6 < (plain.weight - start).norm().item()
    loose, _ = trained(11, clip_norm=2 * max(norms))
    assert torch.equal(loose.weight, plain.weight)


def test_the_scheduler_sets_the_rate_of_each_step():
    model, rates = nn.Linear(4, 3), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    engine.train_step(
        model,
        loader(samples(6)),
        nn.CrossEntropyLoss(),
        optimizer,
        "cpu",
        method=engine.Method(scheduler=scheduler),
    )
    assert optimizer.param_groups[0]["lr"] == 0.5**3
    data = loader(samples(6))
    engine.train(
        model,
        data,
        data,
        optimizer,
        nn.CrossEntropyLoss(),
        1,
        "cpu",
        False,
        method=engine.Method(scheduler=scheduler),
        on_step=lambda epoch, step: rates.append(step.lr),
    )
    assert rates == [0.5**3, 0.5**4, 0.5**5]


def test_where_images_are_mixed_the_larger_share_is_the_right_answer():
    """A model that always says class 1, and labels that are mixed with 60 % of it."""

    class SaysOne(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 0 + torch.tensor([0.0, 1.0, 0.0])

    def mix(images, labels):
        shares = nn.functional.one_hot(labels, 3) * 0.4
        shares[:, 1] += 0.6
        return images, shares

    data = TensorDataset(torch.zeros(4, 4), torch.tensor([0, 2, 0, 2]))
    model = SaysOne(4, 3)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    arguments = (loader(data), nn.CrossEntropyLoss(), still, "cpu")
    _, plain = engine.train_step(model, *arguments)
    _, mixed = engine.train_step(model, *arguments, method=engine.Method(mix=mix))
    assert (plain, mixed) == (0.0, 1.0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_nearly_the_same(precision):
    dtypes = []

    class Watched(nn.Linear):
        def forward(self, x):
            logits = super().forward(x)
            dtypes.append(logits.dtype)
            return logits

    weights = {}
    for kind in ("float32", precision):
        torch.manual_seed(0)
        model = Watched(4, 3)
        method = engine.Method(precision=kind)
        data = loader(samples(8), 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        engine.train(
            model, data, data, optimizer, nn.CrossEntropyLoss(), 3, "cpu", False, method=method
        )
        weights[kind] = model.weight
        assert method.scaler.is_enabled() == (kind == "float16")
    assert set(dtypes) == {torch.float32, getattr(torch, precision)}
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(*weights.values(), rtol=0, atol=0.02)
    assert not torch.equal(*weights.values())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_in_half_precision_the_loss_of_an_evaluation_is_a_sum_in_full_precision(precision):
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3), samples(8)
    loss, _ = engine.evaluate(model, loader(data, 8), nn.CrossEntropyLoss(), "cpu", 1, precision)
    with utils.autocast("cpu", precision):
        logits = model(data.tensors[0])
    assert logits.dtype == getattr(torch, precision)
    assert loss == nn.functional.cross_entropy(logits.float(), data.tensors[1]).item()


def test_float16_gradients_are_unscaled_before_they_are_clipped():
    plain, _ = trained(11, clip_norm=0.01)
    half, _ = trained(11, clip_norm=0.01, precision="float16")
    torch.testing.assert_close(half.weight, plain.weight, rtol=0, atol=1e-3)


def test_evaluations_measure_the_averaged_weights():
    model, data = nn.Linear(4, 3), loader(samples(8), 4)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    results = engine.train(
        model,
        data,
        data,
        torch.optim.SGD(model.parameters(), lr=1.0),
        nn.CrossEntropyLoss(),
        2,
        "cpu",
        False,
        method=engine.Method(average=average),
    )
    measured = {
        kind: engine.test_step(each, data, nn.CrossEntropyLoss(), "cpu")[0]
        for kind, each in (("average", average.module), ("last", model))
    }
    assert results["test_loss"][-1] == measured["average"] != measured["last"]


# Watching a training


def test_collapse_is_seen_and_said(capsys):
    """A model that gives every image one class, whatever it is."""
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    model.bias.data = torch.tensor([0.0, 0.0, 1.0])
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    arguments = (still, nn.CrossEntropyLoss(), 1, "cpu")
    mixed, single = samples(), samples()
    single.tensors[1][:] = 2  # one class is right where there is only one
    results = engine.train(model, loader(mixed), loader(mixed), *arguments)
    assert results["collapsed"] == [True]
    assert "collapsed: all 5 test images are called class 2" in capsys.readouterr().out
    results = engine.train(model, loader(mixed), loader(single), *arguments)
    assert results["collapsed"] == [False]
    assert "collapsed" not in capsys.readouterr().out
    model.weight.data = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    results = engine.train(model, loader(mixed), loader(mixed), *arguments)
    assert results["collapsed"] == [False]


def test_a_notebook_can_watch_each_epoch():
    model, data, seen = nn.Linear(4, 3), loader(samples()), []
    results = engine.train(
        model,
        data,
        data,
        torch.optim.SGD(model.parameters(), lr=0.1),
        nn.CrossEntropyLoss(),
        3,
        "cpu",
        False,
        on_epoch=lambda results: seen.append(list(results["train_loss"])),
    )
    assert seen == [results["train_loss"][:n] for n in (1, 2, 3)]


def test_another_loss_can_be_evaluated_than_trained():
    model, data = nn.Linear(4, 3), loader(samples())
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.5)
    results = engine.train(
        model, data, data, still, smooth, 1, "cpu", False, test_loss_fn=nn.CrossEntropyLoss()
    )
    expected = engine.test_step(model, data, nn.CrossEntropyLoss(), "cpu")[0]
    assert results["test_loss"] == [expected] != results["train_loss"]
