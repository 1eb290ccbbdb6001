"""The step: the exact reduction, what is counted, what a checkpoint keeps."""

import numpy as np
import pytest
import torch
from engine_parts import AUGMENT, TABLE, a_run, a_stream, an_engine, distance, flat, gradient, synthetic
from torch import nn
from torch.nn import functional as F

from remix_dist.config.run import Data, Model, Optim, Run, Train
from remix_dist.labels.same import Same
from remix_dist.mix.none import NoMix
from remix_dist.model import build_model
from remix_dist.rebalance.drs import DRS
from remix_dist.rebalance.drw import DRW
from remix_dist.rebalance.none import NoRebalance
from remix_dist.rebalance.resample import Resample
from remix_dist.rebalance.reweight import Reweight
from remix_dist.types import generator

torch.set_num_threads(1)


def linear_model(classes=4):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, classes))
    rng = generator(9, "linear")
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.from_numpy(rng.normal(0, 0.1, p.shape)))
    return net


def literal(run, batches, weight_C):
    """(gradient, relabelled rows, rows): Eq. 8-10 and weighted cross-entropy, one row and one label at a time."""
    net, count = linear_model(), TABLE.count_C.tolist()
    num, den, rows, relabelled = 0.0, 0.0, 0, 0
    for batch in batches:
        images, labels = batch.images_BCHW.float(), batch.labels_B.tolist()
        images = AUGMENT.photometric(images, batch.noise_BK)
        rng = generator(run.train.seed, "mix", batch.step, batch.micro_batch)
        lam = float(np.float32(rng.beta(1.0, 1.0)))
        partner = rng.permutation(len(labels))
        for i, j in enumerate(partner):
            a, b, lam_y = labels[i], labels[j], lam
            if count[a] / count[b] >= 3 and lam < 0.5:
                lam_y = 0.0
            elif count[b] / count[a] >= 3 and 1 - lam < 0.5:
                lam_y = 1.0
            relabelled, rows = relabelled + (lam_y != lam), rows + 1
            logits = net(AUGMENT.normalize((lam * images[i] + (1 - lam) * images[j])[None]))
            for label, share in ((a, lam_y), (b, 1 - lam_y)):
                weight = share * float(weight_C[label])
                num = num + weight * F.cross_entropy(logits, torch.tensor([label]))
                den += weight
    loss = num / (den if run.train.normalize == "weight_sum" else rows)
    return flat(torch.autograd.grad(loss, list(net.parameters()))), relabelled, rows


@pytest.mark.parametrize("normalize", ["weight_sum", "count"])
@pytest.mark.parametrize("rebalanced", [True, False])
def test_drw_changes_the_gradient_by_exactly_the_weights(normalize, rebalanced):
    run = a_run("Mixup", "CrossEntropy", "DRW", rows=8, train={"normalize": normalize})
    engine, batches = an_engine(run, TABLE, linear_model()), [synthetic(2, m, 8) for m in range(4)]
    engine.accumulate(iter(batches), 4, rebalanced)
    weight_C = run.rebalance.row_weight(TABLE) if rebalanced else torch.ones(4)
    expected, relabelled, rows = literal(run, batches, weight_C)
    assert distance(gradient(engine), expected) < 1e-5
    assert 0 < relabelled < rows
    fetched = engine.meter.fetch(engine.params)
    assert fetched["relabelled"] == relabelled / rows and fetched["rows"] == rows


def test_the_relabelled_share_is_that_of_a_literal_recount_over_steps():
    run = a_run("Mixup", rows=8)
    engine, total, seen = an_engine(run, TABLE, linear_model()), 0, 0
    for step in range(6):
        batches = [synthetic(step, m, 8) for m in range(4)]
        engine.accumulate(iter(batches), 4, rebalanced=False)
        _, relabelled, rows = literal(run, batches, torch.ones(4))
        total, seen = total + relabelled, seen + rows
    assert 20 < total < 150
    assert engine.meter.fetch(engine.params)["relabelled"] == total / seen


def clean(labels, rebalance="NoRebalance", normalize="count"):
    """The gradient of a clean global batch with these labels in both micro-batches."""
    run = a_run("NoMix", rebalance=rebalance, micro_batches=2, train={"normalize": normalize})
    engine = an_engine(run, TABLE, linear_model())
    engine.accumulate(iter([synthetic(0, m, labels=labels) for m in range(2)]), 2, rebalanced=True)
    return gradient(engine)


def test_weights_do_not_cancel():
    """Dividing each row's weighted loss by its own weight made re-weighting a no-op in a public reproduction."""
    weight_C = Reweight().row_weight(TABLE).numpy()
    for c in range(4):
        plain = clean([c] * 4)
        np.testing.assert_allclose(clean([c] * 4, "Reweight"), weight_C[c] * plain, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(clean([c] * 4, "Reweight", "weight_sum"), plain, rtol=2e-5, atol=1e-6)
    labels, parts = [0, 1, 1, 3], []
    for c in range(4):  # each class' part of the gradient: the loss of its rows alone
        run = a_run("NoMix", micro_batches=2)
        net, total = linear_model(), 0.0
        for m in range(2):
            batch = synthetic(0, m, labels=labels)
            x = AUGMENT.normalize(AUGMENT.photometric(batch.images_BCHW.float(), batch.noise_BK))
            total = total + (F.cross_entropy(net(x), batch.labels_B, reduction="none") * (batch.labels_B == c)).sum()
        parts.append(flat(torch.autograd.grad(total, list(net.parameters()))))
    assert run.train.global_batch == 8
    weighted = sum(w * p for w, p in zip(weight_C, parts, strict=True))
    np.testing.assert_allclose(clean(labels, "Reweight"), weighted / 8, rtol=2e-4, atol=1e-5)
    den = 2 * (weight_C[0] + 2 * weight_C[1] + weight_C[3])
    np.testing.assert_allclose(clean(labels, "Reweight", "weight_sum"), weighted / den, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("rebalance", [Resample(), DRS(start=0.5), NoRebalance()])
def test_the_class_histogram_that_reaches_the_loss_is_the_quota_epoch_by_epoch(digits_url, rebalance):
    """329 rows are 7 global batches of 47, so epochs end with steps. Resampling acts from epoch 2 of 4 for DRS."""
    run = Run(
        data=Data(augment=AUGMENT), mix=NoMix(), labels=Same(), rebalance=rebalance, model=Model("linear"),
        train=Train(global_batch=47, micro_batch=47),
    )  # fmt: skip
    first = 2 if isinstance(rebalance, DRS) else 0
    stream, table = a_stream(run, digits_url, balanced_from=first)
    assert len(stream.shards) == 329
    engine, batches, before = an_engine(run, table, linear_model(10)), stream.batches(0, 28), torch.zeros(10)
    share_C = rebalance.class_share(table)
    for epoch in range(4):
        for _ in range(7):
            engine.accumulate(batches, 1, rebalanced=epoch >= first)
        delivered_C = (engine.meter.delivered_C - before).numpy()
        before = engine.meter.delivered_C.clone()
        if share_C is None or epoch < first:
            assert delivered_C.tolist() == table.count_C.tolist()
        else:
            assert np.abs(delivered_C - 329 * share_C.numpy()).max() < 1
            assert delivered_C[-1] > 5 * int(table.count_C[-1])  # the rarest class has one image
            assert delivered_C.tolist() == stream.plan.quotas(epoch)[0].tolist()


def test_only_the_deferred_phase_is_weighted():
    run = a_run("NoMix", rebalance="DRW", train={"normalize": "count"})
    engine = an_engine(run, TABLE, linear_model())
    for rebalanced in (False, True):
        engine.optimizer.zero_grad()
        engine.accumulate(iter([synthetic(0, m, labels=[3] * 4) for m in range(4)]), 4, rebalanced)
        if not rebalanced:
            plain = gradient(engine)
    np.testing.assert_allclose(gradient(engine), float(DRW().row_weight(TABLE)[3]) * plain, rtol=1e-4, atol=1e-6)


def test_a_step_is_sgd_with_momentum_and_weight_decay_and_the_average_follows():
    optim = Optim(lr=9.0, momentum=0.9, weight_decay=0.01, ema=0.75)
    run = a_run("NoMix", optim=optim)
    engine, net = an_engine(run, TABLE, linear_model()), linear_model()
    weights = [p.detach().clone() for p in net.parameters()]
    momentum, average = [torch.zeros_like(w) for w in weights], [w.clone() for w in weights]
    for step, lr in enumerate((0.1, 0.1, 0.01)):
        batches = [synthetic(step, m) for m in range(4)]
        x = torch.cat([AUGMENT.normalize(AUGMENT.photometric(b.images_BCHW.float(), b.noise_BK)) for b in batches])
        with torch.no_grad():
            for p, w in zip(net.parameters(), weights, strict=True):
                p.copy_(w)
        loss = F.cross_entropy(net(x), torch.cat([b.labels_B for b in batches]))
        for i, grad in enumerate(torch.autograd.grad(loss, list(net.parameters()))):
            momentum[i] = 0.9 * momentum[i] + grad + 0.01 * weights[i]
            weights[i] = weights[i] - lr * momentum[i]
            average[i] = 0.75 * average[i] + 0.25 * weights[i]
        engine.step(iter(batches), 4, lr, rebalanced=False)
    assert distance(flat(engine.params), flat(weights)) < 1e-5
    assert distance(flat(engine.ema), flat(average)) < 1e-5
    live = flat(engine.params)
    with engine.averaged(3) as model:
        np.testing.assert_array_equal(flat(model.parameters()), flat(engine.ema))
    np.testing.assert_array_equal(flat(engine.params), live)


def test_weight_decay_leaves_out_biases_and_norms_where_it_is_told_to():
    for decay_norm in (True, False):
        engine = an_engine(a_run("NoMix", optim=Optim(weight_decay=0.5, momentum=0.0, decay_norm=decay_norm)), TABLE)
        before = {n: p.detach().clone() for n, p in engine.model.named_parameters()}
        for p in engine.params:
            p.grad = torch.zeros_like(p)
            with torch.no_grad():
                p += 1.0
        for group in engine.optimizer.param_groups:
            group["lr"] = 1.0
        engine.optimizer.step()
        for name, p in engine.model.named_parameters():
            factor = 0.5 if decay_norm or p.ndim > 1 else 1.0
            torch.testing.assert_close(p.detach(), factor * (before[name] + 1.0))


def test_the_state_continues_in_a_new_engine_bit_for_bit(digits_url):
    run = a_run("ManifoldMixup", "LDAM", "DRW", optim=Optim(lr=0.05, ema=0.9))
    stream, table = a_stream(run, digits_url)
    one = an_engine(run, table)
    whole = stream.batches(0, 5)
    for _ in range(5):
        one.step(whole, 4, 0.05, rebalanced=True)
    two, head = an_engine(run, table), stream.batches(0, 2)
    for _ in range(2):
        two.step(head, 4, 0.05, rebalanced=True)
    saved = {k: {n: t.clone() for n, t in group.items()} for k, group in two.state(2).items()}
    three, tail = an_engine(run, table, build_model(run.model.name, 10, 30.0, seed=77)), stream.batches(2, 5)
    three.load(saved)
    for _ in range(3):
        three.step(tail, 4, 0.05, rebalanced=True)
    first, second = one.state(5), three.state(5)
    assert first.keys() == second.keys() == {"model", "optim", "ema"}
    for group in first:
        assert first[group].keys() == second[group].keys() and first[group]
        assert all(torch.equal(first[group][k], second[group][k]) for k in first[group])


def test_an_average_that_begins_with_a_resume_begins_at_the_weights(digits_url):
    run = a_run("NoMix")
    stream, table = a_stream(run, digits_url)
    plain = an_engine(run, table)
    plain.step(stream.batches(0, 1), 4, 0.1, rebalanced=False)
    late = an_engine(a_run("NoMix", optim=Optim(ema=0.9)), table)
    late.load(plain.state(1))
    np.testing.assert_array_equal(flat(late.ema), flat(plain.params))
