"""Every format in its own conventions, held against the box and against linear theory."""

import pickle
from itertools import pairwise

import numpy as np
import pytest

from cosmoflow.cosmology.background import Background
from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.painting import paint_block
from cosmoflow.storage.snapshots import SnapshotHints, describe_snapshot, open_particles
from tests import snapshot_files as files
from tests.cases import each
from tests.conftest import refused

GRID = 32
FASTPM = {
    "ScalingFactor": np.array([files.A]),
    "OmegaM": np.array([files.OMEGA_M]),
    # FastPM's Omega0 is that of dark matter without neutrinos.
    "Omega0": np.array([0.9 * files.OMEGA_M]),
    "UsePeculiarVelocity": np.array([1], "i4"),
    "LibFastPMVersion": "test",
}


def gadget2(path, box):
    return files.write_gadget_hdf5(path / "snapshot_003.hdf5", box)


def gadget2_mpc(path, box):
    return files.write_gadget_set(path / "snapdir_004", box, length=1.0)


def tng(path, box):
    units = {"UnitLength_in_cm": files.KPC, "UnitMass_in_g": 1.989e43,
             "UnitVelocity_in_cm_per_s": 1e5, "OmegaBaryon": files.OMEGA_B}  # fmt: skip
    first = files.write_gadget_set(
        path / "snapdir_099", box, 4, "snap_099",
        kind=np.float64, columns=files.TNG_COLUMNS, **units,
    )  # fmt: skip
    return first.replace(".0.hdf5", ".2.hdf5")


def gadget4(path, box):
    # Gadget-4 keeps cosmology and units with the parameters, and counts in 64 bits. The unit of
    # velocity here is one of a user.
    parameters = {"HubbleParam": files.H, "Omega0": files.OMEGA_M,
                  "OmegaLambda": 1 - files.OMEGA_M, "UnitLength_in_cm": files.MPC,
                  "UnitMass_in_g": 1.989e43, "UnitVelocity_in_cm_per_s": 2e5}  # fmt: skip
    files.write_gadget_set(
        path, box, 2, "snapshot_003", length=1.0, parameters=parameters, Git_commit="abc",
        velocity_factor=0.5 * files.A**-0.5,
        HubbleParam=None, Omega0=None, OmegaLambda=None, NumPart_Total_HighWord=None,
        NumPart_Total=np.array([0, box.count, 0, 0, 0, 0], np.uint64),
    )  # fmt: skip
    return str(path / "snapshot_003")


def quijote(path, box):
    plugin = pytest.importorskip("hdf5plugin")
    # The suite's files are Blosc-compressed after the low bits of the numbers were dropped.
    nulled = [
        (values.astype(np.float32).view(np.uint32) & np.uint32(2**32 - 2**bits)).view(np.float32)
        for values, bits in ((box.position * 1e3, 8), (box.velocity, 11))
    ]
    lossy = files.Box(nulled[0] / 1e3, nulled[1], box.size)
    options = {"chunks": (2048, 3), **plugin.Blosc(cname="zstd", shuffle=plugin.Blosc.SHUFFLE)}
    files.write_gadget_set(path / "snapdir_003", lossy, 2, "snap_003", options=options)
    return str(path / "snapdir_003" / "snap_003")


def camels(path, box):
    return files.write_gadget_hdf5(
        path / "snapshot_090.hdf5", box, types=(0, 1), total={0: box.count, 1: box.count},
        mass=(1.0 - files.OMEGA_B / files.OMEGA_M) * box.mass,
        named={0: {"Masses": np.full(box.count, 0.1, np.float32)}},
        options={"compression": "gzip", "shuffle": True, "chunks": (2048, 3)},
    )  # fmt: skip


def swift(path, box):
    return files.write_swift(
        path / "snap_0007.hdf5", box, compression="gzip", shuffle=True, fletcher32=True
    )


def fastpm(path, box):
    pytest.importorskip("bigfile")
    header = files.gadget_bigfile_header(box, 1.0, files.MPC, **FASTPM)
    return files.write_bigfile(path / "fastpm_0.5000", box, header=header)


def mp_gadget(path, box):
    pytest.importorskip("bigfile")
    header = files.gadget_bigfile_header(
        box, 1e-3, files.KPC, UsePeculiarVelocity=np.array([1], "i4"),
        RSDFactor=np.array([1e3 * files.RSD_FACTOR]),
    )  # fmt: skip
    return files.write_bigfile(path / "PART_003", box, header=header, length=1e-3, kind="f8")


def mp_gadget_canonical(path, box):
    pytest.importorskip("bigfile")
    header = files.gadget_bigfile_header(
        box, 1e-3, files.KPC, UsePeculiarVelocity=np.array([0], "i4"),
        RSDFactor=np.array([1e3 * files.RSD_FACTOR / files.A]),
    )  # fmt: skip
    return files.write_bigfile(
        path / "PART_003", box, header=header, length=1e-3, velocity_factor=files.A
    )


def mp_gadget_initial(path, box):
    pytest.importorskip("bigfile")
    header = files.gadget_bigfile_header(
        box, 1e-3, files.KPC, UsePeculiarVelocity=np.array([0], "i4"),
        UnitaryAmplitude=np.array([1], "i4"),
    )  # fmt: skip
    return files.write_bigfile(
        path / "IC", box, header=header, length=1e-3, velocity_factor=files.A**-0.5
    )


def abacus(path, box):
    pytest.importorskip("asdf")
    return files.write_abacus(path / "z1.000", box)


def abacus_zlib(path, box):
    pytest.importorskip("asdf")
    files.write_abacus(path / "z1.000", box, compression="zlib")
    return str(path / "z1.000" / "halo_rv_A" / "halo_rv_A_001.asdf")


def abacus_blosc(path, box):
    pytest.importorskip("abacusnbody")
    files.write_abacus(path / "z1.000", box, compression="blsc")
    return str(path / "z1.000" / "*_rv_A" / "*.asdf")


def abacus_unpacked(path, box):
    pytest.importorskip("asdf")

    def columns(piece):
        half = 0.5 * box.size
        position = ((piece.position + half) % box.size - half).astype(np.float32)
        return {"pos": position, "vel": piece.velocity.astype(np.float32)}

    return files.write_abacus(path / "z1.000", box, columns=columns)


def npz(path, box):
    np.savez(path / "box.npz", **files.npz_arrays(box))
    return str(path / "box.npz")


def npz_deflated(path, box):
    np.savez_compressed(path / "box.npz", **files.npz_arrays(box))
    return str(path / "box.npz")


def binary1(path, box):
    return files.write_gadget_binary(path / "ics", box)


def binary2_big_endian(path, box):
    return files.write_gadget_binary(path / "snap_004", box, order=">", labels=True)


FORMATS = [
    gadget2, gadget2_mpc, tng, gadget4, quijote, camels, swift, fastpm, mp_gadget,
    mp_gadget_canonical, mp_gadget_initial, abacus, abacus_zlib, abacus_blosc, abacus_unpacked, npz,
    npz_deflated, binary1, binary2_big_endian,
]  # fmt: skip


@pytest.fixture(scope="module")
def box():
    return files.zeldovich_box()


@pytest.fixture(scope="module")
def write(tmp_path_factory, box):
    """Return a function that writes each format once."""
    urls = {}

    def once(format_):
        if format_ not in urls:
            urls[format_] = format_(tmp_path_factory.mktemp(format_.__name__), box)
        return urls[format_]

    return once


def velocity_ratio(position, velocity, size, rate):
    """Return P_theta / (f a H)^2 P_delta of the largest modes; momentum for the velocity."""
    whole = Block((0, 0, 0), (GRID,) * 3)
    painted = paint_block(
        [(position, velocity, None)], whole, GRID, size,
        count=len(position), fields=("density", "momentum"),
    )  # fmt: skip
    m = np.fft.fftfreq(GRID, 1.0 / GRID)
    k = 2.0 * np.pi / size * np.stack(np.meshgrid(m, m, m[: GRID // 2 + 1], indexing="ij"))
    low = (np.linalg.norm(k, axis=0) < 3.5 * 2.0 * np.pi / size) & (k.any(axis=0))
    delta = np.fft.rfftn(painted["density"].astype(np.float64))[low]
    theta = sum(
        1j * q[low] * np.fft.rfftn(p.astype(np.float64))[low]
        for q, p in zip(k, painted["momentum"], strict=True)
    )
    assert np.real(np.vdot(delta, theta)) < 0.0  # matter flows towards the overdense
    return float((abs(theta) ** 2).sum() / (abs(rate * delta) ** 2).sum())


def periodic_distance(one, other, size):
    apart = np.abs(one.astype(np.float64) - other)
    return np.minimum(apart, size - apart).max()


@each("format_", FORMATS, ids=lambda one: one.__name__)
def test_velocities_obey_linear_theory(format_, write, box):
    source = open_particles(write(format_))
    metadata = source.metadata
    assert metadata.box_size == pytest.approx(box.size, rel=1e-6)
    assert metadata.redshift == pytest.approx(files.REDSHIFT, rel=1e-9, abs=1e-9)
    assert metadata.cosmology.h == pytest.approx(files.H)
    assert metadata.cosmology.Omega_m == pytest.approx(files.OMEGA_M)
    particles = source.read(0, source.count)
    rate = Background(metadata.cosmology).growth_rate_hubble(metadata.scale_factor)
    ratio = velocity_ratio(particles.position, particles.velocity, metadata.box_size, rate)
    assert ratio == pytest.approx(1.0, abs=0.05)


@each(
    "error",
    [
        {"velocity": "peculiar"},
        {"velocity": "canonical"},
        {"velocity": "comoving"},
        {"redshift": 0.0},
        {"redshift": 3.0},
    ],
    ids=str,
)
def test_no_unit_error_survives(error, write):
    """Linear theory notices every wrong unit, convention and epoch."""
    source = open_particles(write(gadget2), SnapshotHints(**error))
    particles = source.read(0, source.count)
    metadata = source.metadata
    rate = Background(metadata.cosmology).growth_rate_hubble(metadata.scale_factor)
    ratio = velocity_ratio(particles.position, particles.velocity, metadata.box_size, rate)
    assert abs(ratio - 1.0) > 0.2


@each(
    "error",
    [
        {"length_unit": "kpc", "wrap": True},
        {"length_unit": 1e-3 * files.A, "wrap": True},
        {"Omega_m": 0.5, "length_unit": "kpc/h"},
    ],
    ids=str,
)
def test_the_mean_density_notices_wrong_units(error, write):
    url = write(gadget2)
    refused(
        DataError, 3, lambda: open_particles(url, SnapshotHints(**error)), "mean density", "Omega_m"
    )


@each("format_", FORMATS, ids=lambda one: one.__name__)
def test_particles_are_those_written(format_, write, box):
    source = open_particles(write(format_))
    particles = source.read(0, source.count)
    packed = format_.__name__.startswith("abacus") and format_ is not abacus_unpacked
    # float32 in kpc/h; Quijote drops 8 of 24 bits, and 11 of the velocities'; Abacus keeps 20.
    length = {quijote: 2**-15 * box.size, **({format_: 0.6e-6 * box.size} if packed else {})}
    speed = {quijote: 2**-12 * 3000.0, **({format_: 1.6} if packed else {})}
    assert source.count == box.count
    assert particles.position.dtype == particles.velocity.dtype == np.float32
    assert particles.position.min() >= 0.0
    assert particles.position.max() < np.float32(box.size)
    apart = periodic_distance(particles.position, box.position, box.size)
    assert apart < length.get(format_, 3e-7 * box.size)
    np.testing.assert_allclose(particles.velocity, box.velocity, atol=speed.get(format_, 2e-3))
    if format_ in (npz, npz_deflated):
        assert source.metadata.particle_mass is None
    elif packed or format_ is abacus_unpacked:
        assert source.metadata.particle_mass == pytest.approx(0.03 * 1e10 * box.mass, rel=1e-4)
    elif format_ is not camels:
        assert source.metadata.particle_mass == pytest.approx(1e10 * box.mass, rel=1e-3)
    assert not source.has_mass


@each("format_", FORMATS, ids=lambda one: one.__name__)
def test_pieces_are_the_whole_in_any_process(format_, write):
    source = open_particles(write(format_))
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 30_000
    whole = source.read(0, source.count)
    pieces = source.ranges(5_000)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == source.count
    assert all(a[1] == b[0] for a, b in pairwise(pieces))
    read = [copy.read(start, stop) for start, stop in pieces]
    np.testing.assert_array_equal(np.concatenate([p.position for p in read]), whole.position)
    np.testing.assert_array_equal(np.concatenate([p.velocity for p in read]), whole.velocity)
    assert source.read(7, 7).position.shape == (0, 3)


@each("format_", FORMATS, ids=lambda one: one.__name__)
def test_description_and_digest(format_, write):
    url = write(format_)
    said = describe_snapshot(url)
    assert said["kind"] == "snapshot"
    assert said["files"] >= 1
    assert said["bytes"] > 0
    assert said["counts"]
    assert open_particles(url).digest == said["digest"]
    # Another reading of the same files is another input.
    assert describe_snapshot(url, SnapshotHints(n_s=0.9))["digest"] != said["digest"]
