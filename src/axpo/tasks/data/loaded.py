"""A data set of the task with what reads its rows, and the rows of a split that are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from axpo.tasks.base import Example, Stored
from axpo.tasks.data.arrow import Row
from axpo.tasks.data.fields import Fields
from axpo.tasks.data.pictures import check_picture, open_pictures, picture_source
from axpo.tasks.data.rows import Rows
from axpo.tasks.data.sets import SetSettings
from axpo.tasks.data.sources import Files, Hub


class DataSet:
    """What reads the rows of a data set; `name` is its name in a mixture, `skip` as in `Fields`.

    Raises `ConfigError` and `DataError`.
    """

    def __init__(self, settings: SetSettings, name: str, skip: bool) -> None:
        self.settings, self.name = settings, name
        self.fields = Fields(settings, name, skip)
        self.image_folder = Path(settings.image_folder) if settings.image_folder else None
        self.foreign = settings.hub is not None
        self.source: Files | Hub
        if settings.hub is not None:
            self.source = Hub(settings.hub, settings.subset, settings.revision, self.fields)
        else:
            self.source = Files(settings.path, self.fields)

    def split(self, name: str) -> str:
        """What the data calls the split."""
        return self.settings.splits.get(name, name)

    def check(self, row: Row, place: str, folder: Path) -> Example:
        """The row as an example whose pictures are looked for, not decoded."""
        example, images = self.fields.read(row, place)
        for picture in images:
            check_picture(picture, self.image_folder or folder, place, self.foreign)
        return example

    def example(self, row: Row, place: str, folder: Path) -> Example:
        """The row as an example with its pictures."""
        example, images = self.fields.read(row, place)
        folder = self.image_folder or folder
        return replace(
            example,
            images=open_pictures(images, folder, place, self.foreign),
            provenance=self._provenance(example.provenance, place),
        )

    def stored(self, row: Row, place: str, folder: Path) -> Stored:
        """The row as it is stored."""
        asked, options, images = self.fields.stored(row, place)
        folder = self.image_folder or folder
        pictures = tuple(picture_source(one, folder, place, self.foreign) for one in images)
        return Stored(place, self.fields.name_of(row, place), asked, options, pictures)

    def _provenance(self, said: str, place: str) -> str:
        """Where a row comes from: what it says, else its place, with the settings' revision of a
        data set of the Hub; before it the set's name."""
        if not said:
            revision = self.settings.revision
            said = place if revision is None else f"{place}, revision {revision}"
        return f"{self.name}: {said}" if self.name else said


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The rows of a file or a split of the Hub that are used: those with the numbers `kept`."""

    data: DataSet
    rows: Rows
    kept: Sequence[int]

    def __len__(self) -> int:
        return len(self.kept)

    def example(self, index: int) -> Example:
        """The `index`-th of them."""
        number = self.kept[index]
        return self.data.example(self.rows.row(number), self.rows.place(number), self.rows.folder)

    def stored(self) -> Iterator[Stored]:
        """All of them, as they are stored."""
        for number in self.kept:
            row, place = self.rows.row(number), self.rows.place(number)
            yield self.data.stored(row, place, self.rows.folder)
