"""Snapshots of a known box, written in the conventions of other codes by code that is not ours.

The box is a Zel'dovich box at z = 1, where a, sqrt(a) and 1 differ: its velocities are
``f a H`` times its displacements, so that ``P_theta = (f a H)^2 P_delta`` on large scales.
"""

import struct
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

H, OMEGA_M, OMEGA_B = 0.67, 0.32, 0.049
REDSHIFT = 1.0
A = 1.0 / (1.0 + REDSHIFT)
CRITICAL = 27.7536627
"""1e10 M_sun/h per (Mpc/h)^3."""
RSD_FACTOR = 1.0 / (100.0 * A * np.sqrt(OMEGA_M / A**3 + 1.0 - OMEGA_M))
"""1 / (a H), Mpc/h per km/s."""
SHARES = {0: 0.13, 1: 0.85, 4: 0.02}
"""Of the matter in gas, dark matter and stars, where a file has several."""
KPC, MPC = 3.085678e21, 3.085678e24
SOLAR_MASS = 1.98841e33


@dataclass(frozen=True)
class Box:
    """Positions (Mpc/h) and peculiar velocities (km/s), float64, and the side of the box."""

    position: np.ndarray
    velocity: np.ndarray
    size: float

    @property
    def count(self):
        return len(self.position)

    @property
    def mass(self):
        """Of a particle, 1e10 M_sun/h."""
        return OMEGA_M * CRITICAL * self.size**3 / self.count

    def split(self, parts):
        """Cut into pieces of unlike lengths."""
        cuts = np.cumsum(np.arange(1, parts + 1))
        cuts = (cuts[:-1] * self.count) // cuts[-1]
        return [
            replace(self, position=x, velocity=v)
            for x, v in zip(
                np.split(self.position, cuts), np.split(self.velocity, cuts), strict=True
            )
        ]


def growth_rate_hubble(a=A, Omega_m=OMEGA_M):
    """Return f a H, km/s per Mpc/h, with f by Linder's fit (good to 0.3 %)."""
    squared = Omega_m * a**-3 + 1.0 - Omega_m
    return (Omega_m * a**-3 / squared) ** 0.55 * a * 100.0 * np.sqrt(squared)


def zeldovich_box(cells=32, size=500.0, seed=3):
    """Return a Zel'dovich box of ``cells^3`` particles."""
    rng = np.random.default_rng(seed)
    m = np.fft.fftfreq(cells, 1.0 / cells)
    k = 2.0 * np.pi / size * np.stack(np.meshgrid(m, m, m[: cells // 2 + 1], indexing="ij"))
    k2 = (k**2).sum(axis=0)
    k2[0, 0, 0] = 1.0
    white = np.fft.rfftn(rng.normal(size=(cells,) * 3))
    # A peak at k = 0.02 h/Mpc, as in the real spectrum, and little on small scales.
    delta = white * np.sqrt(np.sqrt(k2) * np.exp(-k2 / 0.05**2))
    psi = np.stack([np.fft.irfftn(1j * q * delta / k2, (cells,) * 3, (0, 1, 2)) for q in k])
    psi *= 2.0 / psi.std()
    lattice = (np.indices((cells,) * 3) + 0.5) * (size / cells)
    position = np.ascontiguousarray((lattice + psi).reshape(3, -1).T % size)
    return Box(position, growth_rate_hubble() * np.ascontiguousarray(psi.reshape(3, -1).T), size)


def write_gadget_hdf5(
    path, box, *, length=1e-3, total=None, files=1, types=(1,), kind=np.float32, named=None,
    parameters=None, options=None, columns=None, velocity_factor=A**-0.5, mass=None, **header
):  # fmt: skip
    """Write one file as Gadget-2, -3 and AREPO do: lengths in kpc/h, velocities v / sqrt(a)."""
    total = total or {1: box.count}
    mass = box.mass if mass is None else mass
    with h5py.File(path, "w") as file:
        attrs = file.create_group("Header").attrs
        attrs["NumPart_ThisFile"] = np.array(
            [box.count if t in types else 0 for t in range(6)], np.int32
        )
        attrs["NumPart_Total"] = np.array(
            [total.get(t, 0) & 0xFFFFFFFF for t in range(6)], np.uint32
        )
        attrs["NumPart_Total_HighWord"] = np.array(
            [total.get(t, 0) >> 32 for t in range(6)], np.uint32
        )
        attrs["NumFilesPerSnapshot"] = np.int32(files)
        attrs["MassTable"] = np.array([0.0, mass, 0.0, 0.0, 0.0, 0.0])
        attrs["BoxSize"] = box.size / length
        attrs["Time"], attrs["Redshift"] = A, REDSHIFT
        attrs["Omega0"], attrs["OmegaLambda"], attrs["HubbleParam"] = OMEGA_M, 1.0 - OMEGA_M, H
        for key, value in header.items():
            if value is None:
                del attrs[key]
            else:
                attrs[key] = value
        if parameters is not None:
            file.create_group("Parameters").attrs.update(parameters)
        for t in types:
            group = file.create_group(f"PartType{t}")
            position = (box.position / length).astype(kind)
            velocity = (box.velocity * velocity_factor).astype(np.float32)
            group.create_dataset("Coordinates", data=position, **(options or {}))
            group.create_dataset("Velocities", data=velocity, **(options or {}))
            group["ParticleIDs"] = np.arange(box.count, dtype=np.uint64)
            for name, values in (named or {}).get(t, {}).items():
                group[name] = values
            for name, attributes in (columns or {}).items():
                group[name].attrs.update(attributes)
    return str(path)


def write_gadget_set(folder, box, parts=3, name="snap_004", **options):
    """Write a snapshot in several files; return the first."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    total = {1: box.count}
    urls = [
        write_gadget_hdf5(
            Path(folder) / f"{name}.{index}.hdf5", piece, total=total, files=parts,
            mass=box.mass, **options,
        )
        for index, piece in enumerate(box.split(parts))
    ]  # fmt: skip
    return urls[0]


TNG_COLUMNS = {
    "Coordinates": {"a_scaling": 1.0, "h_scaling": -1.0, "to_cgs": KPC},
    "Velocities": {"a_scaling": 0.5, "h_scaling": 0.0, "to_cgs": 1e5},
}


def write_swift(path, box, *, types=(1,), columns=None, **options):
    """Write one file as SWIFT does: Mpc without h, physical peculiar velocities."""
    mass = box.mass / H
    with h5py.File(path, "w") as file:
        attrs = file.create_group("Header").attrs
        attrs["Code"] = np.bytes_(b"SWIFT")
        attrs["NumPart_ThisFile"] = np.array([box.count if t in types else 0 for t in range(7)])
        attrs["NumPart_Total"] = np.array(
            [box.count if t in types else 0 for t in range(7)], np.uint32
        )
        attrs["NumPart_Total_HighWord"] = np.zeros(7, np.uint32)
        attrs["NumFilesPerSnapshot"] = np.array([1], np.int32)
        attrs["MassTable"] = np.array([mass if t in types else 0.0 for t in range(7)])
        attrs["BoxSize"] = np.full(3, box.size / H)
        attrs["Redshift"], attrs["Scale-factor"] = np.array([REDSHIFT]), np.array([A])
        attrs["Time"] = np.array([0.006])
        cosmology = file.create_group("Cosmology").attrs
        cosmology["Cosmological run"] = np.array([1])
        for key, value in (("h", H), ("Omega_m", OMEGA_M), ("Omega_b", OMEGA_B),
                           ("Omega_lambda", 1.0 - OMEGA_M)):  # fmt: skip
            cosmology[key] = np.array([value])
        units = file.create_group("Units").attrs
        units["Unit length in cgs (U_L)"] = np.array([3.08567758e24])
        units["Unit mass in cgs (U_M)"] = np.array([1e10 * SOLAR_MASS])
        units["Unit time in cgs (U_t)"] = np.array([3.08567758e19])
        units["Unit current in cgs (U_I)"] = units["Unit temperature in cgs (U_T)"] = [1.0]
        for t in types:
            group = file.create_group(f"PartType{t}")
            group.create_dataset("Coordinates", data=box.position / H, chunks=(1024, 3), **options)
            group.create_dataset(
                "Velocities", data=box.velocity.astype(np.float32), chunks=(1024, 3), **options
            )
            group["Masses"] = np.full(box.count, mass, np.float32)
            for name, power in (("Coordinates", 1.0), ("Velocities", 0.0)):
                group[name].attrs["a-scale exponent"] = np.array([power], np.float32)
                group[name].attrs["h-scale exponent"] = np.array([0.0], np.float32)
            for name, attributes in (columns or {}).items():
                group[name].attrs.update(attributes)
    return str(path)


def write_bigfile(path, box, *, header, length=1.0, velocity_factor=1.0, files=2, kind="f4"):
    """Write a bigfile with its own library."""
    import bigfile

    with bigfile.File(str(path), create=True) as file:
        with file.create("Header") as block:
            for key, value in header.items():
                block.attrs[key] = value
        for name, values in (
            ("1/Position", box.position / length), ("1/Velocity", box.velocity * velocity_factor)
        ):  # fmt: skip
            with file.create(name, (kind, 3), box.count, files) as block:
                block.write(0, values.astype(kind))
    return str(path)


def gadget_bigfile_header(box, length, unit_cm, **more):
    """Return the attributes that FastPM and MP-Gadget share."""
    return {
        "BoxSize": np.array([box.size / length]),
        "Time": np.array([A]),
        "Omega0": np.array([OMEGA_M]),
        "OmegaLambda": np.array([1.0 - OMEGA_M]),
        "HubbleParam": np.array([H]),
        "TotNumPart": np.array([0, box.count, 0, 0, 0, 0], "i8"),
        "MassTable": np.array([0.0, box.mass, 0.0, 0.0, 0.0, 0.0]),
        "UnitLength_in_cm": np.array([unit_cm]),
        "UnitMass_in_g": np.array([1.989e43]),
        "UnitVelocity_in_cm_per_s": np.array([1e5]),
        **more,
    }


def pack_rvint(box):
    """Pack particles as AbacusSummit does: 20 bits of position, 12 of velocity."""
    x = (box.position + 0.5 * box.size) % box.size - 0.5 * box.size
    steps = np.round(x / box.size * 1e6).astype(np.int64)
    speed = np.clip(np.round(box.velocity / 6000.0 * 2048.0) + 2048, 0, 4095).astype(np.int64)
    return ((steps << 12) | speed).astype(np.int32)


def write_abacus(folder, box, *, slabs=2, share=0.03, compression=None, columns=None):
    """Write subsample A with the ASDF library: field and halo particles, slab by slab."""
    import asdf

    header = {
        "SimName": "test", "BoxSize": box.size, "BoxSizeHMpc": box.size, "H0": 100.0 * H,
        "Omega_M": OMEGA_M, "Omega_DE": 1.0 - OMEGA_M, "Redshift": REDSHIFT,
        "NP": round(box.count / share), "ParticleSubsampleA": share, "hMpc": 1,
        "ParticleMassHMsun": 1e10 * box.mass * share, "VelZSpace_to_kms": 1e5,
    }  # fmt: skip
    pieces = box.split(2 * slabs)
    for index, piece in enumerate(pieces):
        kind, slab = ("field", "halo")[index // slabs], index % slabs
        place = Path(folder) / f"{kind}_rv_A"
        place.mkdir(parents=True, exist_ok=True)
        data = columns(piece) if columns else {"rvint": pack_rvint(piece)}
        asdf.AsdfFile({"data": data, "header": header}).write_to(
            place / f"{kind}_rv_A_{slab:03d}.asdf", all_array_compression=compression
        )
    return str(folder)


def write_gadget_binary(path, box, *, order="<", labels=False, types=None, length=1e-3):
    """Write Gadget's binary format 1, or 2 with labels; the types' masses differ when several."""
    types = types or {1: box}
    counts = [types[t].count if t in types else 0 for t in range(6)]
    table = [0.0] * 6
    if list(types) == [1]:
        table[1] = box.mass
    header = struct.pack(
        f"{order}6i6ddd2i6I2i4d2i6I", *counts, *table, A, REDSHIFT, 0, 0, *counts, 0, 1,
        box.size / length, OMEGA_M, 1.0 - OMEGA_M, H, 0, 0, *[0] * 6,
    ).ljust(256, b"\0")  # fmt: skip
    position = np.concatenate([b.position for b in types.values()]) / length
    velocity = np.concatenate([b.velocity for b in types.values()]) / np.sqrt(A)
    blocks = [
        ("HEAD", header),
        ("POS ", position.astype(f"{order}f4").tobytes()),
        ("VEL ", velocity.astype(f"{order}f4").tobytes()),
        ("ID  ", np.arange(sum(counts), dtype=f"{order}u4").tobytes()),
    ]
    if len(types) > 1:
        masses = np.concatenate([np.full(b.count, SHARES[t] * b.mass) for t, b in types.items()])
        blocks.append(("MASS", masses.astype(f"{order}f4").tobytes()))
    with Path(path).open("wb") as file:
        for label, content in blocks:
            if labels:
                name = label.encode() + struct.pack(f"{order}i", len(content) + 8)
                file.write(struct.pack(f"{order}i", 8) + name + struct.pack(f"{order}i", 8))
            mark = struct.pack(f"{order}I", len(content))
            file.write(mark + content + mark)
    return str(path)


def npz_arrays(box, **more):
    """Return the content of an npz file."""
    return {
        "position": box.position.astype(np.float32),
        "velocity": box.velocity.astype(np.float32),
        "box_size": box.size, "redshift": REDSHIFT, "h": H, "Omega_m": OMEGA_M, **more,
    }  # fmt: skip
