"""The learning rate rises and falls, averages have their width, and each optimiser updates what it should."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from videogen.config.train import OptimConfig
from videogen.training.ema import PowerEMA
from videogen.training.optimizers import MuonAdamW, learning_rate, make_optimizer, orthogonalise
from videogen.training.run_checkpoints import load_step, save_step


def test_the_learning_rate_warms_up_stays_constant_and_decays_to_zero() -> None:
    config = OptimConfig(lr=2.0, warmup_steps=10, decay_share=0.2)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert set(rates[10:81]) == {2.0}
    assert rates[80:] == pytest.approx([2.0 * (100 - step) / 20 for step in range(80, 101)])
    assert rates[99] > 0
    assert rates[100] == 0


def test_a_learning_rate_without_warmup_or_decay_is_constant() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=0, decay_share=0.0)
    assert {learning_rate(step, 50, config) for step in range(50)} == {1.0}


def test_the_average_of_constant_weights_is_the_constant() -> None:
    model = nn.Linear(3, 2)
    ema = PowerEMA(model, (0.05, 0.2))
    for step in range(1, 50):
        ema.update(step)
    for copy in ema.copies:
        for average, weight in zip(copy, model.parameters(), strict=True):
            torch.testing.assert_close(average, weight.detach(), atol=1e-6, rtol=0)  # float32 lerps


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_the_profile_of_an_average_has_the_requested_width(width: float) -> None:
    """The average of a weight that equals step / steps is the profile's mean; of its square, the second moment."""
    steps = 2000
    model = nn.Linear(2, 1, bias=False).double()
    ema = PowerEMA(model, (width,))
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[step / steps, (step / steps) ** 2]]))
        ema.update(step)
    mean, square = ema.copies[0][0].flatten().tolist()
    assert (square - mean**2) ** 0.5 == pytest.approx(width, rel=0.02)  # a sum of 2000 terms approximates the integral


def test_swapping_twice_brings_the_live_weights_back() -> None:
    model = nn.Linear(3, 2)
    ema = PowerEMA(model, (0.1,))
    live = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for copy in ema.copies[0]:
            copy.zero_()
    ema.swap()
    assert not any(p.any() for p in model.parameters())
    ema.swap()
    assert all(map(torch.equal, live, model.parameters()))


def test_weight_decay_is_on_matrices_only() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Conv2d(2, 2, 1))
    groups = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert {p.ndim >= 2 for p in groups[0]["params"]} == {True}
    assert {p.ndim >= 2 for p in groups[1]["params"]} == {False}
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.3, 0.0)
    assert sum(len(group["params"]) for group in groups) == 6


class TinyBlocks(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.head(x)


def test_muon_orthogonalises_the_updates_of_the_blocks_and_of_nothing_else() -> None:
    torch.manual_seed(0)
    model = TinyBlocks()
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon", lr=0.1, weight_decay=0.0))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(block.weight) for block in model.blocks]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        p.grad = gradients[name]
    optimizer.step()
    updates = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    # Five Newton-Schulz iterations leave singular values between about 0.7 and 1.2 (Jordan et al. 2024), times the
    # factor 0.2 sqrt(8) that gives the update the size of AdamW's.
    values = torch.linalg.svdvals(updates["blocks.0.weight"]) / (0.1 * 0.2 * 8**0.5)
    assert 0.6 < values.min() < values.max() < 1.3
    assert torch.linalg.cond(gradients["blocks.0.weight"]) > 5
    # AdamW's first update has the learning rate in every entry with a gradient.
    assert updates["embed.weight"].abs().flatten().tolist() == pytest.approx([0.1] * 32, rel=1e-3)


def test_muon_takes_the_steps_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videogen.training.optimizers.lacks_bf16_instructions", lambda device: False)
    ours, theirs = nn.Linear(24, 8), nn.Linear(24, 8)
    theirs.load_state_dict(ours.state_dict())
    groups = [{"params": [ours.weight], "weight_decay": 0.1}]
    optimizer = MuonAdamW(groups, [{"params": [ours.bias]}], OptimConfig(lr=0.03))
    reference = torch.optim.Muon([theirs.weight], lr=0.03, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for number in range(3):
        ours.weight.grad = torch.randn(8, 24, generator=torch.Generator().manual_seed(number))
        theirs.weight.grad = ours.weight.grad.clone()
        optimizer.step()
        reference.step()
    assert torch.equal(ours.weight, theirs.weight)


def test_products_in_float32_orthogonalise_as_those_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    results = []
    for lacks in (False, True):
        monkeypatch.setattr("videogen.training.optimizers.lacks_bf16_instructions", lambda device, lacks=lacks: lacks)
        results.append(orthogonalise(matrix))
    assert [result.dtype for result in results] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(results[0].float(), results[1], atol=0.02, rtol=0.02)


def start_muon() -> tuple[TinyBlocks, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = TinyBlocks()
    return model, make_optimizer(model, OptimConfig(optimizer="muon", lr=0.01))


def take_steps(model: TinyBlocks, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(number))
        (model(x) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def train_in_process(rank: int, folder: str) -> None:
    """Take three steps as one of two processes, which compute the same gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model, optimizer = start_muon()
    take_steps(model, optimizer, range(3))
    torch.save(model.state_dict(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_orthogonalise_a_share_each_and_take_the_steps_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_in_process, (str(tmp_path),), nprocs=2)
    model, optimizer = start_muon()
    take_steps(model, optimizer, range(3))
    for rank in range(2):
        weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_muon_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole, optimizer = start_muon()
    ema = PowerEMA(whole, (0.1,))
    take_steps(whole, optimizer, range(3))
    save_step(tmp_path, 3, ema, optimizer)
    take_steps(whole, optimizer, range(3, 6))
    resumed, optimizer = start_muon()
    load_step(tmp_path, 3, PowerEMA(resumed, (0.1,)), optimizer)
    take_steps(resumed, optimizer, range(3, 6))
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
