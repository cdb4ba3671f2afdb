"""Boxes: several of them, several snapshots, initial conditions from files, and what is refused."""

import numpy as np
import pytest
import xarray as xr

from cosmoflow.config import CosmologyConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.numerics import fourier, initial, lpt
from tests.cases import each

pytestmark = pytest.mark.e2e

BOX, CELLS = 96.0, 32
TINY = ["--engine=serial", f"--box={BOX}", f"--particles={CELLS}", "--steps=4", "--seed=5"]


def opened(path):
    return xr.open_zarr(path, consolidated=False)


def periodic(difference):
    return (difference + 0.5 * BOX) % BOX - 0.5 * BOX


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The particles of seed 5."""
    from cosmoflow.cli.app import run_app

    path = tmp_path_factory.mktemp("reference") / "box.zarr"
    assert run_app(["simulate", str(path), "--quiet", *TINY]) == 0
    return opened(path).load()


def test_snapshots_pairs_and_initial_fields(tmp_path, cosmoflow):
    """At an early time particles are where the stored linear displacement puts them."""
    out = tmp_path / "boxes"
    options = ["--redshift=0,20", "--count=2", "--method=2lpt", "--set=simulate.initial_fields=1"]
    options += ["--set=simulate.paired=true", "--set=simulate.start_redshift=40"]
    code, events, err = cosmoflow("simulate", out, *TINY, *options, "--json")
    assert code == 0, err
    names = {path.name for path in out.glob("*.zarr")}
    assert names == {
        f"box-000{box}-{what}.zarr" for box in (0, 1) for what in ("z20", "z0", "initial")
    }
    assert [store.rsplit("/", 1)[1] for store in events[-1]["stores"]] == [
        "box-0000-z20.zarr", "box-0000-z0.zarr", "box-0001-z20.zarr", "box-0001-z0.zarr",
    ]  # fmt: skip
    code, _, err = cosmoflow("simulate", out, *TINY, *options, "--seed=6", "--resume")
    assert (code, "begun with other settings" in err) == (2, True)
    # All are there, so that there is nothing to resume.
    code, _, err = cosmoflow("simulate", out, *TINY, *options)
    assert code == 2
    assert "--overwrite to replace it" in err
    assert "--resume" not in err
    background = Background(CosmologyConfig())
    growth = background.growth(1.0 / 21.0)
    rate = background.growth_rate_hubble(1.0 / 21.0)
    q = lpt.lattice_positions(CELLS, BOX).numpy()
    displacements = []
    for box in (0, 1):
        early = opened(out / f"box-000{box}-z20.zarr")
        fields = opened(out / f"box-000{box}-initial.zarr")
        assert early.attrs["redshift"] == 20.0
        psi = fields["displacement"].values
        displacements.append(psi)
        moved = growth * psi.reshape(3, -1).T
        found = periodic(early["position"].values - q)
        # The second order is what is left: a hundredth at this time.
        assert np.std(found - moved) < 0.02 * np.std(moved)
        assert np.std(early["velocity"].values - rate * moved) < 0.04 * rate * np.std(moved)
        # -div psi is the linear density.
        modes = [fourier.forward(fourier.torch.from_numpy(p)) for p in psi]
        ks = fourier.wavenumbers(CELLS, BOX, odd=True)
        minus_div = -fourier.inverse(sum(1j * k * m for k, m in zip(ks, modes, strict=True)), CELLS)
        density = fields["linear_density"].values
        assert np.abs(minus_div.numpy() - density).max() < 1e-3 * density.std()
    np.testing.assert_array_equal(displacements[0], -displacements[1])


def test_the_way_to_a_later_snapshot_is_the_same_run(tmp_path, cosmoflow, reference):
    """With its steps where they were, a run that also stops half way ends at the same particles."""
    out = tmp_path / "boxes"
    # Two equal steps to a = 0.55 and two from there are the four of the reference.
    assert cosmoflow("simulate", out, *TINY, "--redshift=0.8181818181818181,0")[0] == 0
    assert {path.name for path in out.glob("*.zarr")} == {"z0.818182.zarr", "z0.zarr"}
    last = opened(out / "z0.zarr")
    difference = periodic(last["position"].values - reference["position"].values)
    assert np.abs(difference).max() < 0.05
    assert np.std(difference) < 1e-3


def test_power_from_a_table_is_that_of_the_cosmology(tmp_path, cosmoflow, reference):
    power = LinearPower.from_cosmology(CosmologyConfig())
    table = tmp_path / "power.txt"
    np.savetxt(table, np.column_stack([power.k, power.power]), header="k P")
    out = tmp_path / "box.zarr"
    code, _, err = cosmoflow("simulate", out, *TINY, f"--set=simulate.linear_power={table}")
    assert code == 0, err
    difference = periodic(opened(out)["position"].values - reference["position"].values)
    assert np.std(difference) < 1e-4
    # Which table it was is on record, and where it lay does not decide what the output is.
    provenance = opened(out).attrs["provenance"]
    assert set(provenance["inputs"]) == {"linear_power"}
    assert provenance["sources"] == {"linear_power": str(table)}
    assert str(tmp_path) not in str(provenance["config"])


@each(
    ("rows", "code", "words"),
    [
        (lambda k, p: (k, 2.0 * p), 2, ("amplitude", "cosmology.sigma8=1.17")),
        (lambda k, p: (k[k > 0.1], p[k > 0.1]), 2, ("amplitude",)),
        (lambda k, p: (k[k < 0.9], p[k < 0.9]), 3, ("cover", "0.0654")),
        (lambda k, p: (k[::-1], p[::-1]), 3, ("increasing",)),
        (lambda k, p: (k[:3], p[:3]), 3, ("four",)),
        (lambda k, p: "not a table\n", 3, ("not a table",)),
    ],
)
def test_bad_tables_are_refused(tmp_path, cosmoflow, rows, code, words):
    power = LinearPower.from_cosmology(CosmologyConfig())
    table, out = tmp_path / "power.txt", tmp_path / "box.zarr"
    given = rows(power.k, power.power)
    if isinstance(given, str):
        table.write_text(given)
    else:
        np.savetxt(table, np.column_stack(given))
    found, _, err = cosmoflow("simulate", out, *TINY, f"--set=simulate.linear_power={table}")
    assert found == code
    for word in (*words, str(table)):
        assert word in err or word == str(table), err
    assert not out.exists()


def test_a_design_makes_the_boxes_of_its_rows(tmp_path, cosmoflow, reference):
    """Each as if it were simulated alone, and nothing where a row is wrong."""
    table, out = tmp_path / "design.csv", tmp_path / "boxes"
    table.write_text(
        "# three boxes\nOmega_m, sigma8, box_size, redshift\n"
        f"0.31, 0.83, {BOX}, 0\n0.25, 0.9, 128, 0\n0.25, 0.9, 64, 1 0.5\n"
    )
    design = [*TINY, f"--set=simulate.design={table}"]
    code, events, err = cosmoflow("simulate", out, *design, "--json")
    assert code == 0, err
    names = ["box-0000", "box-0001", "box-0002-z1", "box-0002-z0.5"]
    assert [store.rsplit("/", 1)[1] for store in events[-1]["stores"]] == [
        f"{name}.zarr" for name in names
    ]
    first, second, early, late = (opened(out / f"{name}.zarr") for name in names)
    # Where a box was made is no part of what it is.
    assert first.identical(reference)
    assert (second.attrs["box_size"], second.attrs["cosmology"]["sigma8"]) == (128.0, 0.9)
    assert [box.attrs["redshift"] for box in (early, late)] == [1.0, 0.5]
    alone = ["--seed=6", "--box=128", "--set=cosmology={Omega_m: 0.25, sigma8: 0.9}"]
    assert cosmoflow("simulate", tmp_path / "alone.zarr", *TINY, *alone)[0] == 0
    assert opened(tmp_path / "alone.zarr").identical(second)
    # Initial conditions are counted, then steps. Spreadsheets begin a table with a mark.
    table.write_text("redshift\n0\n1 0\n", encoding="utf-8-sig")
    code, events, err = cosmoflow("simulate", tmp_path / "lpt", *design, "--method=2lpt", "--json")
    assert code == 0, err
    for stage, expected in (("initial conditions", 2), ("simulate", 5)):
        of_stage = [event for event in events if event.get("stage") == stage]
        total = next(event["total"] for event in of_stage if event["event"] == "started")
        done = [event["done"] for event in of_stage if event["event"] == "advanced"]
        assert total == done[-1] == expected
    code, _, err = cosmoflow("plan", "paper", f"--set=simulate.design={table}")
    assert code == 2
    assert "simulate.design" in err
    for text, status, words in [
        ("Omega_m,sigma_8\n0.3,0.8\n", 2, ("unknown column", "sigma_8", "sigma8")),
        ("Omega_m\n0.3\n1.3\n", 2, ("row 2", "cosmology.Omega_m", "1.3")),
        ("Omega_m\n0.3\nmuch\n", 2, ("row 2", "much")),
        ("redshift\n0\n20\n", 2, ("row 2", "start_redshift")),
        ("m_nu\n0\n0.06\n", 2, ("massive neutrinos", "box-0001", "0.06")),
        ("Omega_m,sigma8\n0.3\n", 3, ("row 1", "columns")),
        ("Omega_m\n", 3, ("no rows",)),
    ]:
        table.write_text(text)
        code, _, err = cosmoflow("simulate", tmp_path / "bad", *design)
        assert code == status, err
        assert all(word in err for word in words), err
        assert not (tmp_path / "bad").exists()
    # What others made is never marked as boxes, which --overwrite may delete.
    table.write_text("redshift\n0\n1\n")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    for how in ("--resume", "--overwrite"):
        code, _, err = cosmoflow("simulate", tmp_path / "theirs", *design, how)
        assert code == 2, err
        assert "not made by cosmoflow" in err
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["notes.txt"]


@each("kind", ["npy", "zarr"])
def test_white_noise_from_a_file_is_that_of_the_seed(tmp_path, cosmoflow, reference, kind):
    import zarr

    modes = initial.white_noise_modes(CELLS, 5)
    turns = fourier.torch.stack(list(initial._turns(CELLS)))
    cube = fourier.inverse(modes * turns, CELLS).numpy() * CELLS**1.5
    path = tmp_path / f"noise.{kind}"
    if kind == "npy":
        np.save(path, cube.astype(np.float64))
    else:
        zarr.create_array(path, shape=cube.shape, chunks=(16, 16, 16), dtype="float32")[:] = cube
    out = tmp_path / "box.zarr"
    code, _, err = cosmoflow("simulate", out, *TINY, f"--set=simulate.white_noise={path}")
    assert code == 0, err
    difference = periodic(opened(out)["position"].values - reference["position"].values)
    assert np.std(difference) < 1e-4


@each(
    ("cube", "words"),
    [
        (np.random.default_rng(1).normal(size=(16, 16, 16)), ("fit", "simulate.particles=16")),
        (np.ones((CELLS,) * 3), ("variance",)),
        (np.arange(8), ("cube",)),
    ],
)
def test_bad_noise_is_refused(tmp_path, cosmoflow, cube, words):
    path, out = tmp_path / "noise.npy", tmp_path / "box.zarr"
    np.save(path, cube)
    code, _, err = cosmoflow("simulate", out, *TINY, f"--set=simulate.white_noise={path}")
    assert code == 3
    assert all(word in err for word in words), err
    assert not out.exists()


@each(
    ("options", "words"),
    [
        (["--particles=33"], ("even", "33")),
        (["--box=0"], ("simulate.box_size", "0")),
        (["--set=cosmology.Omega_m=0"], ("cosmology.Omega_m",)),
        (["--steps=1", "--redshift=1,0"], ("steps 1", "2 snapshots")),
        (["--steps=2000"], ("simulate.steps", "1000")),
        (["--redshift=1,1"], ("twice",)),
        (["--redshift=9"], ("start_redshift",)),
        (["--mesh-factor=5"], ("mesh_factor",)),
        (["--count=3", "--set=simulate.paired=1"], ("even", "3")),
        (["--count=2", "--set=simulate.white_noise=x.npy"], ("one cube",)),
        (["--memory=1MB"], ("memory", "--memory", "fewer simulate.particles")),
        (["--particles=8192"], ("memory", "worker can have")),
    ],
)
@each("count", [[], ["--count=2"]])
def test_bad_settings_are_refused_before_any_work(tmp_path, cosmoflow, options, words, count):
    out = tmp_path / "out"
    given = [*count, *options] if not any("count" in option for option in options) else options
    code, _, err = cosmoflow("simulate", out, *TINY, *given)
    assert code == 2
    assert all(word in err for word in words), err
    assert not out.exists()


@pytest.mark.cluster
def test_boxes_on_ray_tell_of_every_step(tmp_path, cosmoflow):
    out, serial = tmp_path / "ray", tmp_path / "serial"
    options = [option for option in TINY if "engine" not in option]
    code, events, err = cosmoflow("simulate", out, *options, "--count=3", "--engine=ray", "--json")
    assert code == 0, err
    notes = {event["note"] for event in events if event["event"] == "advanced"}
    assert notes >= {f"box-000{box}: step {step} of 4" for box in range(3) for step in (1, 2, 3, 4)}
    done = [event["done"] for event in events if event["event"] == "advanced"]
    assert done == sorted(done)
    assert done[-1] == 3 * 5
    assert cosmoflow("simulate", serial, *options, "--count=3", "--engine=serial")[0] == 0
    for box in range(3):
        one, other = (opened(path / f"box-000{box}.zarr") for path in (out, serial))
        assert one.identical(other)
