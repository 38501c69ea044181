import pytest
import torch

from privimage.acceleration import in_turns
from privimage.diffusion import pretrain as module
from privimage.diffusion.compact_unet import CompactUNet
from privimage.diffusion.denoiser import Denoiser, losses, noise_levels
from privimage.diffusion.pretrain import Pretraining, PretrainSettings, pretrain
from privimage.diffusion.unet import UNet, UNetShape
from privimage.errors import UserError
from privimage.progress import Reporter, Stopped
from privimage.threads import Workers

SHAPE = UNetShape(4, 1, 8, (1, 2), (), 2, blocks_per_level=1)
SETTINGS = PretrainSettings(
    steps=6, batch_size=16, learning_rate=2e-3, warmup_steps=2, schedule="linear"
)


@pytest.fixture(scope="module")
def workers():
    pool = Workers(2)
    yield pool
    pool.close()


def toy_images():
    """Label 0: bright above, label 1: bright to the left; 16 images each with a little noise."""
    random = torch.Generator().manual_seed(0)
    images = torch.full((32, 1, 4, 4), 30.0)
    images[:16, :, :2, :] = 220
    images[16:, :, :, :2] = 220
    images += 20 * torch.rand(images.shape, generator=random)
    return images.to(torch.uint8), torch.arange(2).repeat_interleave(16)


def start(workers, settings=SETTINGS, kind=CompactUNet, shape=SHAPE, seed=5):
    torch.manual_seed(0)
    return Pretraining(kind(shape), *toy_images(), settings, seed, workers)


def run(folder, workers, settings=SETTINGS, kind=CompactUNet, seed=5, max_seconds=None):
    torch.manual_seed(0)
    reporter = Reporter(quiet=True, max_seconds=max_seconds)
    weights, _ = pretrain(kind(SHAPE), *toy_images(), settings, seed, folder, workers, reporter)
    return weights


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def loss_with(weights):
    """The loss on the toy images over fixed noise."""
    torch.manual_seed(0)
    network = CompactUNet(SHAPE)
    if weights is not None:
        network.load_state_dict(weights)
    images, labels = (tensor.repeat_interleave(20, dim=0) for tensor in toy_images())
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(images.shape, generator=random)
    sigma = noise_levels(torch.randn(len(images), generator=random))
    with torch.no_grad():
        return losses(Denoiser(network), images / 127.5 - 1, sigma, noise, labels).mean().item()


def test_pretraining_lowers_the_loss(workers, tmp_path):
    settings = PretrainSettings(
        steps=150, batch_size=64, learning_rate=5e-3, warmup_steps=20, schedule="linear"
    )
    average = run(tmp_path, workers, settings)
    assert loss_with(average) < 0.5 * loss_with(None)


@pytest.mark.parametrize("kind", [CompactUNet, UNet])
def test_stopping_after_every_step_changes_nothing(kind, workers, tmp_path):
    whole = run(tmp_path / "whole", workers, kind=kind)
    for _ in range(SETTINGS.steps - 1):
        with pytest.raises(Stopped):
            run(tmp_path / "stopped", workers, kind=kind, max_seconds=0)
    resumed = run(tmp_path / "stopped", workers, kind=kind, max_seconds=0)
    assert same(whole, resumed)


def test_killed_between_checkpoints_goes_on_from_the_last_one(workers, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", workers)
    with pytest.raises(Stopped):
        run(tmp_path / "killed", workers, max_seconds=0)
    step = Pretraining.step

    def step_or_die(self, index):
        if index == 4:
            raise KeyboardInterrupt
        step(self, index)

    monkeypatch.setattr(Pretraining, "step", step_or_die)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", workers)
    monkeypatch.setattr(Pretraining, "step", step)
    assert same(whole, run(tmp_path / "killed", workers))


def test_stopping_saves_a_checkpoint(workers, tmp_path):
    with pytest.raises(Stopped, match="1 of 6"):
        run(tmp_path, workers, max_seconds=0)
    assert [path.name for path in tmp_path.glob("*.json")] == ["step-00000001.json"]


def test_number_of_threads_and_seed(monkeypatch, tmp_path, workers):
    monkeypatch.setattr(module, "PIECE_PIXELS", 16 * 3)  # pieces of 3 images, the last one of 1
    single = Workers(1)
    one = run(tmp_path / "one", single)
    two = run(tmp_path / "two", workers)
    other = run(tmp_path / "other", workers, seed=6)
    single.close()
    assert same(one, two)
    assert not same(two, other)


def test_gradient_does_not_depend_on_the_size_of_the_pieces(monkeypatch, workers):
    def gradients(pixels):
        monkeypatch.setattr(module, "PIECE_PIXELS", pixels)
        training = start(workers)
        training.step(0)
        return torch.cat([p.grad.flatten() for p in training._network.parameters()])

    whole, pieces = gradients(16 * 1000), gradients(16 * 3)
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", [CompactUNet, UNet])
def test_steps_that_are_recorded_are_the_same_but_for_rounding(monkeypatch, workers, kind):
    monkeypatch.setattr(module, "PIECE_PIXELS", 16 * 3)
    plain, recorded = start(workers, kind=kind), start(workers, kind=kind)
    recorded.accelerate()
    watched = []
    recorded._network.register_forward_hook(lambda *_: watched.append(1))
    for index in range(3):
        expected, found = (each._gradients(each._draw(index)) for each in (plain, recorded))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max())
        with torch.no_grad():  # Parameters are read where they are.
            for parameter in (*plain._parameters.values(), *recorded._parameters.values()):
                parameter.mul_(0.9)
    assert not watched


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
    ],
)
def test_learning_rate_schedule(schedule, rates):
    settings = PretrainSettings(steps=6, learning_rate=2.0, warmup_steps=2, schedule=schedule)
    assert [settings.learning_rate_at(step) / 2 for step in range(6)] == pytest.approx(rates)
    flat = PretrainSettings(steps=6, learning_rate=2.0)
    assert [flat.learning_rate_at(step) for step in range(6)] == [2.0] * 6


def test_learning_rate_reaches_the_optimiser(workers):
    slow, fast = (
        start(workers, PretrainSettings(6, 16, learning_rate=1e-3, warmup_steps=warmup))
        for warmup in (5, 0)
    )
    moves = []
    for training in (slow, fast):
        before = torch.cat([p.detach().flatten().clone() for p in training._network.parameters()])
        training.step(0)
        after = torch.cat([p.detach().flatten() for p in training._network.parameters()])
        moves.append((after - before).abs().max().item())
    assert moves == pytest.approx([2e-4, 1e-3], rel=0.01)  # Adam's first step is the rate itself


def test_flipping_mirrors_half_of_the_images(workers):
    settings = PretrainSettings(steps=6, batch_size=4000, flip=True, label_dropout=0.0)
    images, _, _, labels = start(workers, settings)._draw(0)
    left = images[labels == 1, 0, :, 0].float().mean(dim=1) > 127.5
    assert left.float().mean().item() == pytest.approx(0.5, abs=0.05)
    images, _, _, labels = start(workers)._draw(0)
    assert (images[labels == 1, 0, :, 0] > 127).all()


def test_batches_are_in_range_with_a_tenth_of_the_labels_dropped(workers):
    settings = PretrainSettings(steps=6, batch_size=10_000)
    images, sigma, words, labels = start(workers, settings)._draw(3)
    assert images.dtype == torch.uint8
    assert images.shape == (10_000, 1, 4, 4)
    assert sigma.shape == labels.shape == words.shape == (10_000,)
    assert len(words.unique()) == 10_000
    assert (labels == 2).float().mean().item() == pytest.approx(0.1, abs=0.012)
    again, other = (start(workers, settings)._draw(index) for index in (3, 4))
    pairs = zip([images, sigma, words, labels], again, other, strict=True)
    assert all(torch.equal(x, y) and not torch.equal(x, z) for x, y, z in pairs)


def test_unlabelled_network_takes_the_label_0(workers):
    shape = UNetShape(4, 1, 8, (1, 2), (), 0, blocks_per_level=1)
    images, labels = toy_images()
    training = Pretraining(CompactUNet(shape), images, labels * 0, SETTINGS, 0, workers)
    training.step(0)
    assert all(average.isfinite().all() for average in training.averaged().values())


def test_divergence_is_an_error_for_the_user(workers, tmp_path):
    settings = PretrainSettings(steps=4, batch_size=16, learning_rate=1e30)
    with pytest.raises(UserError, match=r"pretrain\.learning_rate"):
        run(tmp_path, workers, settings)


def wrong_data():
    images, labels = toy_images()
    yield images.float(), labels, "uint8"
    yield images[:, :, :3], labels, "images"
    yield images[:0], labels[:0], "at least one"
    yield images, labels[:5], "labels"
    yield images, labels.int(), "int64"
    yield images, labels + 2, r"0 … 2"
    yield images, labels - 1, r"0 … 2"


@pytest.mark.parametrize(("images", "labels", "says"), list(wrong_data()))
def test_data_that_does_not_fit_is_refused(images, labels, says, workers):
    with pytest.raises(UserError, match=says):
        Pretraining(CompactUNet(SHAPE), images, labels, SETTINGS, 0, workers)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"schedule": "cosine"}, "schedule"),
        ({"warmup_steps": 20_000}, "warmup_steps"),
        ({"label_dropout": 1.0}, "label_dropout"),
        ({"ema_decay": -0.1}, "ema_decay"),
    ],
)
def test_meaningless_settings_are_refused_by_name(wrong, says):
    with pytest.raises(UserError, match=says):
        PretrainSettings(**wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", [CompactUNet, UNet])
def test_on_a_gpu_weights_and_moments_stay_float32(workers, kind):
    torch.manual_seed(0)
    network = kind(SHAPE).cuda()
    training = Pretraining(network, *toy_images(), SETTINGS, 5, workers)
    seen = []
    network.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    before = [parameter.clone() for parameter in network.parameters()]
    for index in range(2):
        training.step(index)
    assert set(seen) <= {torch.bfloat16, torch.float32}
    tensors, _ = training.state()
    assert all(
        tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values()
    )
    assert not all(map(torch.equal, before, network.parameters()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_many_calls_are_accelerated(monkeypatch, workers, tmp_path):
    asked = []
    monkeypatch.setattr(module, "MOST_PIXELS", 16 * 12)  # pieces of 12 images and of 4
    monkeypatch.setattr(module, "accelerated", lambda *given: asked.append(1) or in_turns(*given))
    for least, graphs in [(13, 0), (12, 2)]:
        monkeypatch.setattr(module, "WORTH_COMPILING", least)
        torch.manual_seed(0)
        network = CompactUNet(SHAPE).cuda()
        folder, quiet = tmp_path / str(least), Reporter(quiet=True)
        weights, _ = pretrain(network, *toy_images(), SETTINGS, 5, folder, workers, quiet)
        assert len(asked) == graphs
        assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_replayed_gradients_on_a_gpu_are_the_gradients(monkeypatch, workers):
    monkeypatch.setattr(module, "MOST_PIXELS", 16 * 12)
    torch.manual_seed(0)
    network = CompactUNet(SHAPE).cuda()
    plain, replayed = (Pretraining(network, *toy_images(), SETTINGS, 5, workers) for _ in range(2))
    replayed.accelerate()
    for index in range(3):
        expected, found = (each._gradients(each._draw(index)) for each in (plain, replayed))
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2 * expected.abs().max())
        with torch.no_grad():  # Weights are read where they are.
            network.stem.weight.add_(0.1)
