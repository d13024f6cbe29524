"""Where the benchmark datasets come from, how their files are known, and where they lie.

The SHA-256 of the MNIST contents and of the CIFAR-10 training batches were computed from the
original files; those of Fashion-MNIST's and CIFAR's archives, of CIFAR-10's ``test_batch.bin``
and of CIFAR-100's files are published by others who verified the official MD5 (TensorFlow
Datasets, torchvision for Ruby, GoMLX). For Fashion-MNIST only the compressed files' are known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitkit.errors import DataError, suggestion


@dataclass(frozen=True)
class Original:
    """A file as its authors published it.

    Attributes
    ----------
    name : str
        The file's name, without ``.gz``.
    size : int
        Bytes, uncompressed.
    holds : str
        What that many bytes are, for messages.
    sha256 : str
        Of the uncompressed bytes; empty where it is not known.
    gz_sha256 : str
        Of the compressed file as published; empty where it is not published compressed.
    gz_size : int
        Bytes of that.
    """

    name: str
    size: int
    holds: str
    sha256: str = ""
    gz_sha256: str = ""
    gz_size: int = 0

    def spellings(self) -> tuple[str, ...]:
        """Return the names under which the file is found, the official one first."""
        # Some tools write the dot of the file's old name: train-images.idx3-ubyte.
        plain = (self.name, self.name.replace("-idx", ".idx"))
        return (*(f"{name}.gz" for name in plain), *plain) if self.gz_sha256 else plain[:1]


@dataclass(frozen=True)
class Archive:
    """A tar.gz that holds the files.

    Attributes
    ----------
    name : str
        The file's name.
    size : int
        Bytes.
    sha256 : str
        Of those bytes.
    extras : tuple of str
        Small text files to keep beside the data.
    """

    name: str
    size: int
    sha256: str
    extras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A dataset that can be downloaded.

    Attributes
    ----------
    name : str
        What vitkit calls it.
    title, licence : str
        For listings.
    urls : tuple of str
        Folders to download from, tried in this order.
    files : tuple of Original
        Everything that makes it complete.
    archive : Archive or None
        What they are packed in.
    inside : str
        The folder inside the archive.
    pickled : tuple of str
        Files or folders that give away the Python version, which is pickle.
    """

    name: str
    title: str
    licence: str
    urls: tuple[str, ...]
    files: tuple[Original, ...]
    archive: Archive | None = None
    inside: str = ""
    pickled: tuple[str, ...] = ()


def _idx_files(
    contents: tuple[str, ...], compressed: tuple[str, ...], sizes: tuple[int, ...]
) -> tuple[Original, ...]:
    layout = (
        ("train-images-idx3-ubyte", 16 + 60000 * 784, "60000 images of 28x28"),
        ("train-labels-idx1-ubyte", 8 + 60000, "60000 labels"),
        ("t10k-images-idx3-ubyte", 16 + 10000 * 784, "10000 images of 28x28"),
        ("t10k-labels-idx1-ubyte", 8 + 10000, "10000 labels"),
    )
    return tuple(
        Original(*file, content, gz, size)
        for file, content, gz, size in zip(layout, contents, compressed, sizes, strict=True)
    )


MNIST = Source(
    "mnist",
    "MNIST: handwritten digits, 28x28 (LeCun, Cortes and Burges, 1998)",
    "CC BY-SA 3.0",
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    _idx_files(
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        (9_912_422, 28_881, 1_648_877, 4_542),
    ),
)

FASHION_MNIST = Source(
    "fashion_mnist",
    "Fashion-MNIST: articles of clothing, 28x28 (Xiao, Rasul and Vollgraf, 2017)",
    "MIT",
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    _idx_files(
        ("", "", "", ""),
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        (26_421_880, 29_515, 4_422_102, 5_148),
    ),
)

CIFAR10 = Source(
    "cifar10",
    "CIFAR-10: colour photographs, 32x32, 10 classes (Krizhevsky, 2009)",
    "none declared; cite Krizhevsky (2009)",
    ("https://www.cs.toronto.edu/~kriz/",),
    tuple(
        Original(name, 10000 * 3073, "10000 records of 3073 bytes", sha256)
        for name, sha256 in (
            (
                "data_batch_1.bin",
                "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            ),
            (
                "data_batch_2.bin",
                "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            ),
            (
                "data_batch_3.bin",
                "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            ),
            (
                "data_batch_4.bin",
                "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            ),
            (
                "data_batch_5.bin",
                "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            ),
            ("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
        )
    ),
    Archive(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ("batches.meta.txt",),
    ),
    "cifar-10-batches-bin",
    ("cifar-10-batches-py", "data_batch_1", "test_batch", "batches.meta"),
)

CIFAR100 = Source(
    "cifar100",
    "CIFAR-100: colour photographs, 32x32, 100 classes (Krizhevsky, 2009)",
    "none declared; cite Krizhevsky (2009)",
    ("https://www.cs.toronto.edu/~kriz/",),
    (
        Original(
            "train.bin",
            50000 * 3074,
            "50000 records of 3074 bytes",
            "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
        ),
        Original(
            "test.bin",
            10000 * 3074,
            "10000 records of 3074 bytes",
            "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
        ),
    ),
    Archive(
        "cifar-100-binary.tar.gz",
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ("fine_label_names.txt", "coarse_label_names.txt"),
    ),
    "cifar-100-binary",
    ("cifar-100-python", "train", "test", "meta"),
)

SOURCES = {source.name: source for source in (MNIST, FASHION_MNIST, CIFAR10, CIFAR100)}


def source_of(name: str) -> Source:
    """Return where the dataset ``name`` comes from.

    Raises
    ------
    DataError
        If it is not one that can be downloaded.
    """
    if name in SOURCES:
        return SOURCES[name]
    if name == "digits":
        raise DataError("digits comes with vitkit: there is nothing to download or to find.")
    raise DataError(
        f"No dataset {name!r} can be prepared; known: {', '.join(SOURCES)}"
        f"{suggestion(name, SOURCES) or '.'}"
    )


def data_dir() -> Path:
    """Return the folder of datasets: ``VITKIT_DATA_DIR``, or ``data`` in the user's cache."""
    given = os.environ.get("VITKIT_DATA_DIR")
    if given:
        return Path(given)
    import platformdirs

    return platformdirs.user_cache_path("vitkit") / "data"


def find(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder in which the files of a dataset lie.

    Parameters
    ----------
    name : str
        ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"`` or ``"cifar100"``.
    folder : path, optional
        Where to look: there, or in the folder ``name`` in it. By default the folder ``name`` in
        :func:`data_dir`.

    Returns
    -------
    pathlib.Path
        A folder with at least one of its files.

    Raises
    ------
    DataError
        If there is none, or only the Python version of CIFAR, which is pickle.
    """
    source = source_of(name)
    places = list(_places(source, folder))
    for place in places:
        if any(locate(place, file) for file in source.files):
            return place
    for place in places:
        for pickled in source.pickled:
            if (place / pickled).exists():
                raise DataError(
                    f"{place / pickled}: this is the Python version of {name}, which is pickle "
                    "and could run code, so it is not read. Use the binary version: "
                    f"`vitkit data prepare {name}`."
                )
    raise DataError(
        f"{name} not found in {' or '.join(map(str, places))}; run `vitkit data prepare {name}` "
        "or pass --data-dir."
    )


def _places(source: Source, folder: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield the folders in which the files may be."""
    given = [] if folder is None else [Path(folder)]
    for place in (*given, (given or [data_dir()])[0] / source.name):
        yield place
        if source.inside:
            yield place / source.inside


def locate(folder: Path, file: Original) -> Path | None:
    """Return the path of an original file under any of its spellings, or None."""
    for name in file.spellings():
        if (folder / name).is_file():
            return folder / name
    return None
