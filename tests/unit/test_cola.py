from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.errors import ConfigError
from cosmoflow.numerics import cola, fourier, initial, lpt, mesh, timesteps
from tests.cases import each

BOX = 64.0
CELLS = 32
BACKGROUND = Background(CosmologyConfig())


def waves(*amplitudes: float, periods: int = 1) -> torch.Tensor:
    """Modes of the sum of a_i cos(k x_i) over the axes, in cell centres."""
    q = (torch.arange(CELLS) + 0.5) / CELLS * 2.0 * math.pi * periods
    shapes = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
    field = torch.zeros((CELLS,) * 3)
    for amplitude, shape in zip(amplitudes, shapes, strict=False):
        field = field + amplitude * torch.cos(q).view(shape)
    return fourier.forward(field)


def run(modes: torch.Tensor, method: str = "cola", **changes: Any) -> cola.Snapshot:
    """Evolve modes, which are kept, to one output."""
    options: dict[str, Any] = {"box_size": BOX, "outputs": (1.0,), **changes}
    psi = lpt.displacements(modes.clone(), options["box_size"])
    if method == "2lpt":
        return next(cola.displace(BACKGROUND, *psi, **options))
    return next(cola.evolve(BACKGROUND, *psi, **{"steps": 10, **options}))


def periodic(difference: torch.Tensor) -> torch.Tensor:
    return (difference + 0.5 * BOX) % BOX - 0.5 * BOX


def projection(measured: torch.Tensor, expected: torch.Tensor) -> float:
    return float((measured * expected).sum() / (expected**2).sum())


def test_both_orders_of_displacement_are_exact_for_crossed_waves() -> None:
    a, b = 0.3, 0.5
    psi1, psi2 = lpt.displacements(waves(a, b), BOX)
    q = lpt.lattice_positions(CELLS, BOX).double()
    k = 2.0 * math.pi / BOX
    sin, cos = torch.sin(k * q), torch.cos(k * q)
    zero = torch.zeros(len(q), dtype=torch.float64)
    first = torch.stack([-a / k * sin[:, 0], -b / k * sin[:, 1], zero], dim=1)
    torch.testing.assert_close(psi1.double(), first, rtol=0, atol=1e-5)
    # lap phi2 = a b cos(kx) cos(ky), psi2 = +grad phi2.
    second = (a * b / (2.0 * k)) * torch.stack(
        [sin[:, 0] * cos[:, 1], cos[:, 0] * sin[:, 1], zero], dim=1
    )
    torch.testing.assert_close(psi2.double(), second, rtol=0, atol=1e-5)


def test_tidal_components_sum_to_the_field() -> None:
    field = torch.randn((16,) * 3, generator=torch.Generator().manual_seed(0))
    modes = fourier.forward(field)
    modes[8] = modes[:, 8] = modes[:, :, 8] = 0.0
    modes[0, 0, 0] = 0.0
    trace = sum(tide.clone() for (i, j), tide in fourier.tidal_components(modes, 3.0) if i == j)
    torch.testing.assert_close(trace, fourier.inverse(modes, 16), rtol=0, atol=1e-5)


@each("given", ["field", "modes"])
def test_inverse_gradient_equals_plain_transforms(given: str) -> None:
    field = torch.randn((20,) * 3, generator=torch.Generator().manual_seed(0))
    potential = fourier.inverse_laplacian(fourier.forward(field), 7.0)
    source = field.clone() if given == "field" else fourier.forward(field)
    ks = fourier.wavenumbers(20, 7.0, odd=True)
    for axis, component in fourier.inverse_gradient(source, 7.0):
        expected = fourier.inverse(-1j * ks[axis] * potential, 20)
        torch.testing.assert_close(component, expected, rtol=1e-4, atol=1e-6)


@each("method", ["2lpt", "cola"])
@each("a_final", [0.5, 1.0])
def test_pancake_before_shell_crossing(method: Any, a_final: float) -> None:
    """In one dimension Zel'dovich is exact until orbits cross, at D1 times amplitude = 1."""
    amplitude, k = 0.6, 2.0 * math.pi / BOX
    snapshot = run(waves(0.0, amplitude), method=method, outputs=(a_final,))
    q = lpt.lattice_positions(CELLS, BOX).double()
    displacement = torch.zeros_like(q)
    displacement[:, 1] = -amplitude * BACKGROUND.growth(a_final) / k * torch.sin(k * q[:, 1])
    measured = periodic(snapshot.position.double() - q)
    scale = float(displacement.abs().max())
    # The mesh resolves a wave of 32 cells to a few per cent at the worst particle (half of that at
    # 64 cells), and its amplitude to one.
    tolerance = 1e-5 if method == "2lpt" else 0.06
    assert float((measured - displacement).abs().max()) < tolerance * scale
    assert projection(measured, displacement) == pytest.approx(1.0, abs=0.01)
    # Peculiar velocity: a dx/dt = f a H times the displacement, as distances are comoving.
    expected = BACKGROUND.growth_rate_hubble(a_final) * displacement
    error = float((snapshot.velocity.double() - expected).abs().max())
    assert error < tolerance * float(expected.abs().max())
    assert projection(snapshot.velocity.double(), expected) == pytest.approx(1.0, abs=0.02)


def test_painted_pancake_has_the_analytic_phase_and_amplitude() -> None:
    snapshot = run(waves(0.0, 0.0, 0.05), method="2lpt")
    modes = fourier.forward(mesh.paint_contrast(snapshot.position, BOX, CELLS))
    expected = waves(0.0, 0.0, 0.05)
    assert abs(modes[0, 0, 1] / expected[0, 0, 1] - 1.0) < 0.01


def random_modes(cells: int = CELLS, box: float = BOX) -> torch.Tensor:
    power = LinearPower.from_cosmology(CosmologyConfig())
    return initial.linear_density_modes(initial.white_noise_modes(cells, 1), box, power)


def test_momentum_is_conserved() -> None:
    velocity = run(random_modes()).velocity.double()
    assert float(velocity.mean(0).abs().max()) < 1e-5 * float(velocity.std())


def test_output_is_in_the_box_and_input_untouched() -> None:
    psi = lpt.displacements(random_modes(), BOX)
    before = [p.clone() for p in psi]
    calls: list[tuple[int, int]] = []

    def simulate() -> cola.Snapshot:
        return next(
            cola.evolve(
                BACKGROUND, *psi, box_size=BOX, steps=3,
                progress=lambda done, of: calls.append((done, of)),
            )
        )  # fmt: skip

    snapshot = simulate()
    assert all(torch.equal(p, q) for p, q in zip(psi, before, strict=True))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert snapshot.scale_factor == 1.0
    position, velocity = snapshot.position, snapshot.velocity
    for tensor in (position, velocity):
        assert tensor.dtype == torch.float32
        assert tensor.shape == (CELLS**3, 3)
        assert tensor.is_contiguous()
    assert float(position.min()) >= 0.0
    assert float(position.max()) < BOX
    again = simulate()
    assert torch.equal(again.position, position)
    assert torch.equal(again.velocity, velocity)
    for whole, part in zip((position, velocity), snapshot.rows(100, 2000), strict=True):
        assert torch.equal(whole[100:2000], part)


def test_several_outputs_are_the_runs_that_end_there() -> None:
    """A run that stops on its way goes on as if it had not, but for its steps' lengths."""
    psi = lpt.displacements(random_modes(), BOX)
    outputs = (0.4, 0.7, 1.0)
    legs = timesteps.schedule(9, 0.1, outputs)
    assert [len(leg) // 2 for leg in legs] == [3, 3, 3]
    together = [
        (s.scale_factor, s.position, s.velocity)
        for s in cola.evolve(BACKGROUND, *psi, box_size=BOX, outputs=outputs, steps=9)
    ]
    assert [a for a, _, _ in together] == list(outputs)
    for index, (a, position, velocity) in enumerate(together):
        alone = next(
            cola.evolve(BACKGROUND, *psi, box_size=BOX, outputs=(a,), steps=3 * (index + 1))
        )
        assert float(periodic(position - alone.position).std()) < 2e-3
        assert float((velocity - alone.velocity).std()) < 1e-3 * float(velocity.std())


def test_steps_go_where_they_are_longest() -> None:
    assert [len(leg) // 2 for leg in timesteps.schedule(9, 0.1, (0.2, 1.0))] == [1, 8]
    assert [len(leg) // 2 for leg in timesteps.schedule(4, 0.1, (0.2, 0.9, 1.0))] == [1, 2, 1]
    (leg,) = timesteps.schedule(2, 0.1, (1.0,), "log")
    np.testing.assert_allclose(leg, 10.0 ** np.array([-1.0, -0.75, -0.5, -0.25, 0.0]))


def test_wrapping_never_returns_the_box_size() -> None:
    for box in (64.0, 0.1, 512.3):
        x = torch.tensor([[-1e-12, box, 0.0], [-box, 2.5 * box, np.nextafter(np.float32(box), 0)]])
        cola._wrap(x, box)
        assert float(x.min()) >= 0.0
        assert float(x.max()) < box


def test_steps_converge() -> None:
    """The error falls as steps are added, and both spacings have one limit."""
    modes = random_modes()
    best = run(modes, steps=32).position

    def error(**options: Any) -> float:
        return float(periodic(run(modes, **options).position - best).std())

    coarse, fine = error(steps=4), error(steps=12)
    assert fine < 0.5 * coarse
    assert error(steps=24, spacing="log") < 0.5 * coarse


def test_a_finer_mesh_makes_denser_clumps() -> None:
    modes = random_modes()
    rms = [
        float(mesh.paint_contrast(run(modes, mesh_factor=f).position, BOX, CELLS).std())
        for f in (1, 2)
    ]
    assert rms[0] < rms[1] < 1.5 * rms[0]


@each(
    "changes",
    [
        {"steps": 0},
        {"steps": 1, "outputs": (0.5, 1.0)},
        {"a_start": 1.0},
        {"a_start": -0.1},
        {"mesh_factor": 5},
        {"outputs": ()},
        {"outputs": (1.0, 0.5)},
    ],
)
def test_impossible_runs_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        run(waves(0.1), **changes)


def test_projected_memory_counts_every_array() -> None:
    assert cola.peak_bytes(256) == pytest.approx(256**3 * 56, rel=0.01)
    assert cola.peak_bytes(256, 2) == pytest.approx(256**3 * (48 + 64), rel=0.01)


LARGE_CELLS, LARGE_BOX = 96, 768.0


@pytest.fixture(scope="module")
def large_modes() -> torch.Tensor:
    return random_modes(LARGE_CELLS, LARGE_BOX)


@pytest.fixture(scope="module")
def large(large_modes: torch.Tensor) -> cola.Snapshot:
    """A box of 768 Mpc/h, where the largest modes are linear."""
    return run(large_modes, box_size=LARGE_BOX, steps=15)


def test_growth_is_linear(large_modes: torch.Tensor, large: cola.Snapshot) -> None:
    delta = fourier.forward(mesh.paint_contrast(large.position, LARGE_BOX, LARGE_CELLS))
    k = fourier.squared_wavenumber(LARGE_CELLS, LARGE_BOX).sqrt()
    low = (k > 0) & (k < 0.015)
    linear, evolved = large_modes[low], delta[low]
    growth = float((evolved * linear.conj()).real.sum() / (linear.abs() ** 2).sum())
    correlation = growth * float(linear.norm() / evolved.norm())
    assert growth == pytest.approx(1.0, abs=0.02)
    assert correlation > 0.998


def test_velocity_follows_from_density(large: cola.Snapshot) -> None:
    """P_theta = (f a H)^2 P_delta at low k; nearest-cell fields of 16 Mpc/h share a window."""
    n = LARGE_CELLS // 2
    i = (large.position.double().numpy() * n / LARGE_BOX).astype(np.int64) % n
    flat = (i[:, 0] * n + i[:, 1]) * n + i[:, 2]
    count = np.bincount(flat, minlength=n**3)
    delta = fourier.forward(torch.from_numpy(count * (n / LARGE_CELLS) ** 3 - 1.0).view(n, n, n))
    theta = torch.zeros_like(delta)
    for axis, k in enumerate(fourier.wavenumbers(n, LARGE_BOX, odd=True, dtype=torch.float64)):
        momentum = np.bincount(flat, large.velocity[:, axis].double().numpy(), n**3)
        velocity = torch.from_numpy(momentum / np.maximum(count, 1)).view(n, n, n)
        theta += 1j * k * fourier.forward(velocity)
    k = fourier.squared_wavenumber(n, LARGE_BOX).sqrt()
    low = (k > 0) & (k < 0.02)
    ratio = float((theta[low].abs() ** 2).sum() / (delta[low].abs() ** 2).sum())
    assert ratio / BACKGROUND.growth_rate_hubble(1.0) ** 2 == pytest.approx(1.0, abs=0.05)
    # Matter flows in where the density is high.
    assert float((theta[low] * delta[low].conj()).real.sum()) < 0.0


def test_compensation_undoes_the_smoothing_of_the_painting() -> None:
    """A lattice displaced by a short wave pulls with the force of its density, window undone."""
    periods, amplitude = 6, 1e-3
    modes = waves(amplitude, periods=periods)
    k = 2.0 * math.pi * periods / BOX
    psi1, _ = lpt.displacements(modes, BOX)
    x = lpt.lattice_positions(CELLS, BOX) + psi1
    density = mesh.paint_contrast(x, BOX, CELLS)
    expected = amplitude / k

    def strength(window: int) -> float:
        """Amplitude of the wave in the force along x, its harmonics left out."""
        for axis, field in fourier.inverse_gradient(density.clone(), BOX, window=window):
            if axis == 0:
                line = torch.fft.rfft(field.mean((1, 2)))
        return float(line[periods].abs()) * 2.0 / CELLS

    damping = np.sinc(periods / CELLS) ** 2
    assert strength(2) == pytest.approx(strength(0) / damping, rel=1e-4)
    assert abs(strength(2) / expected - 1.0) < 0.6 * abs(strength(0) / expected - 1.0)


def test_four_point_differences_are_exact_to_their_order() -> None:
    """Of the potential of a wave they give (8 sin kh - sin 2kh) / 6kh of the exact gradient."""
    for periods in (1, 4, 9):
        modes = waves(0.3, 0.2, 0.1, periods=periods)
        kh = 2.0 * math.pi * periods / CELLS
        factor = (8.0 * math.sin(kh) - math.sin(2.0 * kh)) / (6.0 * kh)
        exact = {a: g.clone() for a, g in fourier.inverse_gradient(modes.clone(), BOX)}
        for axis, found in fourier.inverse_gradient(modes.clone(), BOX, differences=True):
            torch.testing.assert_close(found, factor * exact[axis], rtol=0, atol=1e-5)
