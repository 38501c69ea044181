"""zip and tar archives of image files: which members are images, by a rule for each alone.

A member is an image if it is a regular file whose name stays inside the archive, ends like that of
an image file and has no hidden part; its class is the folder right around it, but for that of its
person. One that can't be unpacked within its limits (see `members`) is an image without content.
Only what concerns the archive as a whole is an error: that it is none, is cut short or has too many
members.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from privimage.data.members import DAMAGE, Member, members
from privimage.data.persons import PersonKey, person_and_class, refuse_persons, too_deep
from privimage.data.source import (
    SPLITS,
    SUFFIXES,
    Entry,
    Source,
    UnreadableSet,
    no_images,
    one_line,
    refuse_splits,
    some,
)

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_WHOLE = PurePosixPath()


@dataclass(frozen=True, kw_only=True)
class ArchiveSource(Source):
    """The images of an archive, in its own order."""

    form = "archive of images"
    names_by_image = True
    part: PurePosixPath
    person: PersonKey | None

    def entries(self) -> Iterator[Entry]:
        """Member by member, each unpacked in memory."""
        number_of = {name: number for number, name in enumerate(self.names)}
        try:
            for member in members(self.path):
                if not _looks_like_an_image(member) or _fault(member):
                    continue
                if (path := _below(_path(member), self.part)) is not None:
                    person, label = person_and_class(path.parts[:-1], self.person)
                    yield Entry(member.content(), number_of.get(label), str(path), person)
        except DAMAGE as error:
            raise UnreadableSet(
                f"'{self.path}' is damaged as an archive", one_line(error)
            ) from error


def open_archive(
    name: str, path: Path, person: PersonKey | None = None, part: PurePosixPath = _WHOLE
) -> Source:
    """The image set in the archive `path`; nothing is unpacked.

    Args:
        name: how messages call the set.
        path: of the archive.
        person: where its persons are named.
        part: the folder in it that is the set.

    Raises:
        UserError: it is no archive, is cut short, is too large, holds no images, has folders for
            several splits, or none as deep as those that name persons.
    """
    if person is not None and person.column:
        refuse_persons(name, path, person)
    persons: set[str] = set()
    images: set[str] = set()
    classes: set[str] = set()
    splits: dict[str, Path] = {}
    merged: set[str] = set()
    odd: dict[str, list[str]] = {}
    count = 0
    try:
        for member in members(path):
            place = _below(_path(member), part)
            if place is None:
                continue
            # Entries for the folders themselves, which no image decides.
            if member.is_folder and place.name in SPLITS:
                splits[place.name] = path / part / place
            if not _looks_like_an_image(member):
                continue
            if fault := _fault(member):
                odd.setdefault(f"are left out, as {fault}", []).append(member.name)
                continue
            if str(place) in images:
                odd.setdefault("occur more than once; each counts", []).append(member.name)
            count += 1
            images.add(str(place))
            merged |= SPLITS & {*place.parts[:-1]}
            whose, label = person_and_class(place.parts[:-1], person)
            persons.add(whose)
            classes.add(label)
    except DAMAGE as error:
        raise UnreadableSet(
            f"{name}: '{path}' is not readable as an archive", one_line(error)
        ) from error
    where = path / part
    if count == 0:
        raise no_images(name, where)
    refuse_splits(name, where, splits)
    if person is not None and persons == {""}:
        raise too_deep(name, where, person)
    classes.discard("")
    return ArchiveSource(
        path=path,
        part=part,
        names=tuple(sorted(classes)),
        is_labelled=bool(classes),
        count=count,
        person=person,
        remarks=(
            *(f"{len(those)} names {what} ({some(those)})" for what, those in odd.items()),
            *([f"all of {some(sorted(merged))} is taken as one set"] if len(merged) > 1 else []),
        ),
    )


def _path(member: Member) -> PurePosixPath:
    return PurePosixPath(member.name.replace("\\", "/"))


def _below(path: PurePosixPath, part: PurePosixPath) -> PurePosixPath | None:
    """The path from the folder `part` on; None for what lies elsewhere."""
    if part == _WHOLE:
        return path
    return path.relative_to(part) if path.is_relative_to(part) else None


def _looks_like_an_image(member: Member) -> bool:
    path = _path(member)
    is_hidden = any(part[0] == "." and part != ".." for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not is_hidden and not member.is_folder


def _fault(member: Member) -> str:
    """Why a member with the name of an image is none; empty if it is one."""
    parts = _path(member).parts
    if parts[0][0] == "/" or ".." in parts or parts[0].endswith(":"):
        return "they lead out of the archive"
    return "" if member.is_file else "they are links or special files"
