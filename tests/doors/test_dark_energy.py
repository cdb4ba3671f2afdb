"""Dark energy, curvature and neutrinos: of headers, in H(z), growth, redshift space, f a H."""

import camb
import h5py
import numpy as np
import pytest
import xarray as xr
from scipy.special import hyp2f1

import cosmoflow
from cosmoflow.config import CosmologyConfig
from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.cosmology import linear_power
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.stages.inputs.readers import check_same_box
from cosmoflow.storage.field_writing import create_fields, write_whole
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.metadata import BoxMetadata, plain_attributes
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.snapshots import open_particles
from cosmoflow.storage.urls import open_group_for_writing
from tests import snapshot_files as files
from tests.cases import each
from tests.conftest import refused

W0WA = {"w0": -0.7, "wa": -0.6}
A = np.array([0.1, 0.25, 0.5, 1.0])


def rate_of(a, Omega_m=files.OMEGA_M, Omega_k=0.0, w0=-1.0, wa=0.0):
    """Return H / H0, written out once more."""
    dark = (1.0 - Omega_m - Omega_k) * a ** (-3 * (1 + w0 + wa)) * np.exp(-3 * wa * (1 - a))
    return np.sqrt(Omega_m / a**3 + Omega_k / a**2 + dark)


def growth_of(a, Omega_m, w):
    """Return the growth of flat wCDM over a, unnormalised (Silveira & Waga 1994)."""
    x = -(1.0 - Omega_m) / Omega_m * a ** (-3.0 * w)
    return a * hyp2f1(-1.0 / (3.0 * w), (w - 1.0) / (2.0 * w), 1.0 - 5.0 / (6.0 * w), x)


def growth_rate_of(a, Omega_m, w, step=1e-5):
    up, down = (growth_of(a * np.exp(s), Omega_m, w) for s in (step, -step))
    return np.log(up / down) / (2.0 * step)


@each("w", [-1.0, -0.7, -1.3])
def test_growth_with_a_constant_equation_of_state(w):
    background = Background(CosmologyConfig(Omega_m=0.3, w0=w))
    expected = growth_of(A, 0.3, w) / growth_of(1.0, 0.3, w)
    np.testing.assert_allclose(background.growth(A), expected, rtol=1e-7)
    np.testing.assert_allclose(background.growth_rate(A), growth_rate_of(A, 0.3, w), rtol=1e-7)


def test_growth_in_an_open_universe_without_lambda():
    def growth(a):
        x = (1.0 / 0.3 - 1.0) * a
        root = np.sqrt(1.0 + x)
        return 1.0 + 3.0 / x + 3.0 * root / x**1.5 * np.log(root - np.sqrt(x))

    background = Background(CosmologyConfig(Omega_m=0.3, Omega_k=0.7))
    np.testing.assert_allclose(background.growth(A), growth(A) / growth(1.0), rtol=1e-7)
    np.testing.assert_allclose(background.hubble_ratio(A), np.sqrt(0.3 / A**3 + 0.7 / A**2))
    # The known power of Omega for the second order, Omega^(-2/63) without Lambda.
    Omega = 0.3 / A**3 / background.hubble_ratio(A) ** 2
    fit = -3.0 / 7.0 * background.growth(A) ** 2 * Omega ** (-2.0 / 63.0)
    np.testing.assert_allclose(background.growth2(A), fit, rtol=5e-3)


@each("model", [W0WA, {"Omega_k": 0.1}, {"w0": -1.1, "Omega_k": -0.1},
                                   {"m_nu": 0.4}])  # fmt: skip
def test_the_expansion_is_that_of_camb(model):
    c = CosmologyConfig(**model)
    h2 = c.h**2
    parameters = camb.CAMBparams()
    parameters.set_cosmology(
        H0=100 * c.h, ombh2=c.Omega_b * h2, omch2=(c.Omega_m - c.Omega_b - c.Omega_nu) * h2,
        mnu=c.m_nu, num_massive_neutrinos=3 if c.m_nu else 0, omk=c.Omega_k,
    )  # fmt: skip
    parameters.set_dark_energy(w=c.w0, wa=c.wa, dark_energy_model="ppf")
    found = camb.get_background(parameters)
    radiation = found.get_Omega("photon") + found.get_Omega("neutrino")
    for z in (0.0, 1.0, 3.0):
        a = 1.0 / (1.0 + z)
        # Radiation takes its share from dark energy in CAMB; there is none in ours.
        dark = c.Omega_Lambda * a ** (-3 * (1 + c.w0 + c.wa)) * np.exp(-3 * c.wa * (1 - a))
        theirs = (found.hubble_parameter(z) / (100 * c.h)) ** 2
        theirs -= radiation * (a**-4 - dark / c.Omega_Lambda)
        assert Background(c).hubble_ratio(a) == pytest.approx(np.sqrt(theirs), rel=1e-4)


def test_growth_rate_and_linear_power_are_those_of_camb(monkeypatch):
    # Small scales take CAMB its time.
    monkeypatch.setattr(linear_power, "K_MAX", 0.5)
    c = CosmologyConfig(**W0WA)
    parameters = camb.set_params(
        H0=100 * c.h, ombh2=c.Omega_b * c.h**2, omch2=(c.Omega_m - c.Omega_b) * c.h**2, mnu=0.0,
        num_massive_neutrinos=0, ns=c.n_s, As=2e-9, w=-0.7, wa=-0.6, dark_energy_model="ppf",
        redshifts=[1.0, 0.0], kmax=0.7,
    )  # fmt: skip
    parameters.WantCls = False
    found = camb.get_results(parameters)
    expected = found.get_fsigma8() / found.get_sigma8()
    np.testing.assert_allclose(Background(c).growth_rate(np.array([0.5, 1.0])), expected, rtol=1e-3)
    k, _, theirs = found.get_matter_power_spectrum(minkh=0.002, maxkh=0.4, npoints=20)
    ours = LinearPower.from_cosmology(c)(k)
    np.testing.assert_allclose(ours / ours[10], theirs[0] / theirs[0][10], rtol=2e-3)


def test_flat_lambda_cdm_is_written_as_before():
    assert list(CosmologyConfig().model_dump()) == ["h", "Omega_m", "Omega_b", "sigma8", "n_s"]
    assert CosmologyConfig(**W0WA).model_dump(mode="json")["wa"] == -0.6
    assert not {"w0", "wa", "Omega_k", "m_nu"} & set(SnapshotHints().model_dump())
    a = np.geomspace(1e-3, 4.0, 50)
    old = (0.31 * a**-3 + (1.0 - 0.31)) ** 0.5
    np.testing.assert_array_equal(Background(CosmologyConfig()).hubble_ratio(a), old)


@each("wrong", [{"w0": -0.5, "wa": 0.6}, {"Omega_k": 0.8},
                                   {"Omega_m": 0.1, "Omega_k": -0.95}, {"m_nu": 9.0, "h": 0.5,
                                    "Omega_m": 0.06}])  # fmt: skip
def test_universes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"w0 \+ wa|at most 1|expand|neutrinos"):
        CosmologyConfig(**wrong)


@pytest.fixture(scope="module")
def box():
    return files.zeldovich_box(12, 100.0)


def gadget(folder, box, **header):
    return files.write_gadget_hdf5(folder / "snap.hdf5", box, UnitLength_in_cm=files.KPC, **header)


def swift(folder, box, **cosmology):
    url = files.write_swift(folder / "snap.hdf5", box)
    with h5py.File(url, "r+") as file:
        for name, value in cosmology.items():
            file["Cosmology"].attrs[name.replace("__", " [internal units]")] = np.array([value])
    return url


def npz(folder, box, **numbers):
    np.savez(folder / "box.npz", **files.npz_arrays(box, **numbers))
    return str(folder / "box.npz")


def bigfile(folder, box, **header):
    """Write a bigfile by hand, kpc/h, peculiar velocities."""
    values = {**files.gadget_bigfile_header(box, 1e-3, files.KPC),
              "UsePeculiarVelocity": np.array([1], "i4"), **header}  # fmt: skip
    (folder / "PART" / "Header").mkdir(parents=True)
    lines = []
    for name, value in values.items():
        array = np.atleast_1d(value)
        lines.append(f"{name} {array.dtype.str} {array.size} {array.tobytes().hex()} #HUMAN [ ]")
    (folder / "PART" / "Header" / "attr-v2").write_text("\n".join(lines) + "\n")
    for name, column in (("Position", box.position * 1e3), ("Velocity", box.velocity)):
        block = folder / "PART" / "1" / name
        block.mkdir(parents=True)
        (block / "000000").write_bytes(column.astype("<f4").tobytes())
        (block / "header").write_text(
            f"DTYPE: <f4\nNMEMB: 3\nNFILE: 1\n000000: {box.count} : 0 : 0\n"
        )
    return str(folder / "PART")


def abacus(folder, box, **header):
    import asdf

    url = files.write_abacus(folder / "z1.000", box, slabs=1)
    for path in (folder / "z1.000").glob("*/*.asdf"):
        with asdf.open(path, mode="rw", memmap=False, lazy_load=False) as file:
            file["header"].update(header)
            file.update()
    return url


NU = 0.06 / (93.14 * files.H**2)
DARK = 1.0 - files.OMEGA_M
E_W0WA, E_LCDM = rate_of(0.5, **W0WA), rate_of(0.5)
RSD = 1.0 / (0.5 * 100.0 * E_W0WA * 1e-3)
"""kpc/h per km/s at z = 1, as MP-Gadget writes it for w0 = -0.7, wa = -0.6."""

HEADERS = {
    "gadget, constant w": (gadget, {"DarkEnergyParam": -0.7}, {"w0": -0.7}),
    "gadget, w0 and wa": (gadget, W0WA, W0WA),
    "gadget, curvature by Lambda": (gadget, {"OmegaLambda": 0.6}, {"Omega_k": DARK - 0.6}),
    "swift": (swift, {"w_0": -0.7, "w_a": -0.6, "H__": 70 * E_W0WA, "H0__": 70.0}, W0WA),
    "swift, neutrinos": (swift, {"Omega_nu_0": NU, "Omega_m": files.OMEGA_M - NU, "w_0": -1.0,
                                 "M_nu_eV": 0.06, "Omega_k": 2e-9}, {"m_nu": 0.06}),
    "swift, closed": (swift, {"Omega_k": -0.1, "Omega_lambda": DARK + 0.1}, {"Omega_k": -0.1}),
    "mp-gadget, fluid": (bigfile, {"OmegaLambda": np.array([0.0]), "OmegaFld": np.array([DARK]),
                                   "W0_Fld": np.array([-0.7]), "WA_Fld": np.array([-0.6]),
                                   "OmegaK": np.array([0.0]), "RSDFactor": np.array([RSD])}, W0WA),
    "mp-gadget, no fluid": (bigfile, {"OmegaFld": np.array([0.0]), "W0_Fld": np.array([-0.9]),
                                      "RSDFactor": np.array([RSD * E_W0WA / E_LCDM])}, {}),
    "fastpm, neutrinos": (bigfile, {"ScalingFactor": np.array([0.5]), "HubbleE": np.array([E_LCDM]),
                                    "OmegaM": np.array([files.OMEGA_M]),
                                    "Omega_cdm": np.array([files.OMEGA_M - NU])}, {"m_nu": 0.06}),
    "abacus": (abacus, {**W0WA, "Omega_K": 0.0, "HubbleNow": float(E_W0WA)}, W0WA),
    "abacus, neutrinos": (abacus, {"omega_ncdm": NU * files.H**2}, {"m_nu": 0.06}),
    "mp-gadget, a v": (bigfile, {"UsePeculiarVelocity": np.array([0], "i4"),
                                 "RSDFactor": np.array([1e3 * files.RSD_FACTOR / files.A])}, {}),
    "npz": (npz, {**W0WA, "Omega_k": 0.05}, {**W0WA, "Omega_k": 0.05}),
}  # fmt: skip


@each("name", HEADERS)
def test_headers_of_other_codes(tmp_path, box, name):
    write, header, expected = HEADERS[name]
    metadata = open_particles(write(tmp_path, box, **header)).metadata
    assert metadata.unknown_expansion is None
    assert metadata.cosmology.Omega_m == pytest.approx(files.OMEGA_M, rel=1e-6)
    for parameter, usual in {"w0": -1.0, "wa": 0.0, "Omega_k": 0.0, "m_nu": 0.0}.items():
        found = getattr(metadata.cosmology, parameter)
        assert found == pytest.approx(expected.get(parameter, usual), rel=1e-3, abs=1e-9)
    if "m_nu" in expected:
        assert any("0.06 eV" in note for note in metadata.provenance["notes"])


def test_redshift_space_uses_the_dark_energy_of_the_header(tmp_path, serial_run):
    """A particle goes to the cell that H(z) of its own universe puts it into: 3.5 % nearer."""
    position, velocity = np.full((8, 3), 8.5), np.zeros((8, 3))
    velocity[:, 2] = 40.0 * 0.5 * 100.0 * E_W0WA
    url = npz(tmp_path, files.Box(position, velocity, 64.0), **W0WA)
    options = {
        "grid": 64,
        "shard": 64,
        "scheme": "ngp",
        "fields": ["density"],
        "redshift_space": "z",
    }
    painted = cosmoflow.paint(url, str(tmp_path / "fields.zarr"), serial_run(paint=options))
    cell = np.unravel_index(int(painted["density"].values.argmax()), (64,) * 3)
    assert cell == (8, 8, 48)
    assert int(8.5 + 40.0 * E_W0WA / E_LCDM) != 48
    assert painted.attrs["redshift_space"] == "z"
    assert plain_attributes(painted.attrs)["cosmology"]["w0"] == -0.7


def wave_store(url, cosmology, unknown=None, **more):
    """Write a fields store of a plane wave of 4 cycles in 32 cells of 2 Mpc/h, at z = 1."""
    metadata = BoxMetadata(64.0, 1.0, cosmology, None, dict(more), unknown)
    create_fields(url, metadata, 32, ("density",), shard=32, chunk=32)
    x = (np.arange(32) + 0.5) * 2.0
    wave = 1.0 + 0.01 * np.cos(2.0 * np.pi * 4 * x / 64.0)[:, None, None]
    write_whole(url, "density", np.broadcast_to(wave, (32,) * 3).astype(np.float32))
    group = open_group_for_writing(url)
    group["ledger/fields"][:] = 1
    finish_group(group)
    return url


def test_linear_theory_uses_the_growth_of_its_universe(tmp_path, serial_run):
    """v = f a H delta / k of a plane wave, in a store and in an array."""
    c = CosmologyConfig(Omega_m=0.3, w0=-0.7)
    k = 2.0 * np.pi * 4 / 64.0
    expected = 0.01 / k * growth_rate_of(0.5, 0.3, -0.7) * 50.0 * rate_of(0.5, 0.3, w0=-0.7)
    lcdm = 0.01 / k * growth_rate_of(0.5, 0.3, -1.0) * 50.0 * rate_of(0.5, 0.3)
    assert abs(lcdm / expected - 1.0) > 0.01
    url = wave_store(str(tmp_path / "wave.zarr"), c)
    found = cosmoflow.infer(url, str(tmp_path / "v.zarr"), "linear", serial_run())
    amplitude = 2.0 * np.abs(np.fft.fft(found["velocity"].values[0, :, 0, 0])[4]) / 32
    assert amplitude == pytest.approx(expected, rel=1e-4)
    density = FieldStore(url).read("density")
    again = cosmoflow.infer_array(
        density, 64.0, "linear", redshift=1.0, cosmology=c, run=serial_run()
    )
    np.testing.assert_allclose(again["velocity"].values, found["velocity"].values, rtol=1e-5)


UNKNOWN = {
    "table": (gadget, {"DarkEnergyFile": "wz.txt"}, "wz.txt"),
    "no lambda": (gadget, {"OmegaLambda": 0.0}, "Omega_Lambda is 0"),
    "sum": (swift, {"Omega_k": 0.2}, "add up to 1.2"),
    "H(z)": (swift, {"w_0": -1.0, "H__": 70 * E_W0WA, "H0__": 70.0}, "H(z) / H0"),
    "RSDFactor": (bigfile, {"RSDFactor": np.array([RSD])}, "H(z) / H0"),
    "growth": (bigfile, {"ScalingFactor": np.array([0.5]), "HubbleE": np.array([E_LCDM]),
                         "GrowthRate": np.array([0.7])}, "growth rate"),
    "fluid and lambda": (bigfile, {"OmegaLambda": np.array([0.3]),
                                   "OmegaFld": np.array([DARK - 0.3])}, "beside a Lambda"),
}  # fmt: skip


@each("name", UNKNOWN)
def test_an_expansion_that_is_not_known_is_refused_where_it_matters(
    tmp_path, box, name, serial_run
):
    write, header, words = UNKNOWN[name]
    url = write(tmp_path, box, **header)
    source = open_particles(url)
    assert words in source.metadata.unknown_expansion
    assert any(words in note for note in source.metadata.provenance["notes"])
    options = {"grid": 16, "shard": 16}
    run = serial_run(paint={**options, "redshift_space": "x"})
    out = tmp_path / "redshift.zarr"
    refused(DataError, 3, lambda: cosmoflow.paint(url, str(out), run), words, "snapshot.w0")
    assert not out.exists()
    # What the message names works: the hint outweighs the header, and a note says so.
    hinted = serial_run(paint={**options, "redshift_space": "x"}, snapshot={"w0": -1.0})
    painted = cosmoflow.paint(url, str(out), hinted)
    assert any(
        "hints on w0" in note for note in plain_attributes(painted.attrs)["provenance"]["notes"]
    )
    if name != "table":
        return
    # In real space nothing depends on it, until linear theory is wanted.
    real = cosmoflow.paint(url, str(tmp_path / "real.zarr"), serial_run(paint=options))
    assert words in real.attrs["unknown_expansion"]
    for call in (
        lambda: cosmoflow.infer(str(tmp_path / "real.zarr"), str(tmp_path / "v.zarr"), "linear",
                                serial_run()),
        lambda: cosmoflow.evaluate(str(tmp_path / "real.zarr"), str(tmp_path / "real.zarr"),
                                   str(tmp_path / "report"), serial_run()),
    ):  # fmt: skip
        refused(DataError, 3, call, "linear theory", words)


def test_neutrinos_too_massive_for_linear_theory(tmp_path, box, serial_run):
    heavy = wave_store(str(tmp_path / "heavy.zarr"), CosmologyConfig(m_nu=0.3))
    light = wave_store(str(tmp_path / "light.zarr"), CosmologyConfig(m_nu=0.06))
    out = str(tmp_path / "v.zarr")
    refused(DataError, 3, lambda: cosmoflow.infer(heavy, out, "linear", serial_run()), "m_nu")
    cosmoflow.infer(light, out, "linear", serial_run())
    url = swift(tmp_path, box, Omega_nu_0=5 * NU, Omega_m=files.OMEGA_M - 5 * NU, w_0=-1.0)
    options = {"grid": 16, "shard": 16, "redshift_space": "x"}
    fields = str(tmp_path / "fields.zarr")
    # H(z) is known of such a box, and its growth is not, unless a hint takes them for cold.
    cosmoflow.paint(url, fields, serial_run(paint=options))
    remedy = "snapshot.m_nu=0"
    refused(
        DataError, 3, lambda: cosmoflow.infer(fields, out + "y", "linear", serial_run()), remedy
    )
    run = serial_run(paint=options, snapshot={"m_nu": 0.0})
    painted = cosmoflow.paint(url, str(tmp_path / "cold.zarr"), run)
    assert any(
        "m_nu is 0 by hint" in note
        for note in plain_attributes(painted.attrs)["provenance"]["notes"]
    )
    assert plain_attributes(painted.attrs)["cosmology"]["Omega_m"] == pytest.approx(
        files.OMEGA_M, rel=1e-6
    )
    cosmoflow.infer(str(tmp_path / "cold.zarr"), out + "z", "linear", serial_run())
    refused(
        ConfigError, 2,
        lambda: cosmoflow.simulate(out + "x", serial_run(cosmology={"m_nu": 0.06})), "m_nu",
    )  # fmt: skip


def test_simulations_grow_as_their_dark_energy_says(tmp_path, serial_run):
    """In the linear limit displacements grow as D and velocities are f a H times them."""
    k = np.geomspace(1e-3, 5.0, 60)
    power = LinearPower(k, k / (1.0 + (k / 0.05) ** 4)).scaled_to(0.002)
    np.savetxt(tmp_path / "power.txt", np.column_stack([k, power(k)]))
    run = serial_run(
        simulate={"box_size": 256.0, "particles": 8, "redshift": [1.0, 0.0], "method": "2lpt",
                  "linear_power": str(tmp_path / "power.txt")},
        cosmology={"Omega_m": 0.3, "w0": -0.7, "sigma8": 0.002},
    )  # fmt: skip
    early, late = cosmoflow.simulate(str(tmp_path / "boxes"), run)
    lattice = (np.indices((8,) * 3).reshape(3, -1).T + 0.5) * 32.0
    moved = [store.read(0, 512).position - lattice for store in (early, late)]
    moved = [(x + 128.0) % 256.0 - 128.0 for x in moved]
    ratio = (moved[0] * moved[1]).sum() / (moved[1] ** 2).sum()
    expected = growth_of(0.5, 0.3, -0.7) / growth_of(1.0, 0.3, -0.7)
    assert ratio == pytest.approx(expected, rel=2e-3)
    speed = (early.read(0, 512).velocity * moved[0]).sum() / (moved[0] ** 2).sum()
    rate = growth_rate_of(0.5, 0.3, -0.7) * 50.0 * rate_of(0.5, 0.3, w0=-0.7)
    assert speed == pytest.approx(rate, rel=2e-3)
    assert xr.open_zarr(late.url, consolidated=False).attrs["cosmology"]["w0"] == -0.7


def test_cosmologies_that_differ_in_dark_energy_are_told_apart(tmp_path, serial_run):
    lcdm = wave_store(str(tmp_path / "a.zarr"), CosmologyConfig())
    other = wave_store(str(tmp_path / "b.zarr"), CosmologyConfig(w0=-0.7))
    stores = FieldStore(lcdm), FieldStore(other)
    refused(DataError, 3, lambda: check_same_box(*stores), "w0", "--set cosmology.w0=...")
    heard = []
    run = serial_run(listener=heard.append)
    result = cosmoflow.infer(other, str(tmp_path / "v.zarr"), "wiener", run)
    warned = [event.text for event in heard if getattr(event, "level", "") == "warning"]
    assert any(
        "have w0 -0.7, and wiener may have been trained on boxes with -1.0" in text
        for text in warned
    )
    assert any("w0 -0.7" in note for note in plain_attributes(result.attrs)["provenance"]["notes"])
