"""Instructions of clips: of tables, a text or JSON of the same name, lang.txt in their folder, or their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lapa.contracts import BadVideo, LapaError
from lapa.data.caption_table import KINDS, TEXT, Caption, Clips, NoTable, read_table
from lapa.data.folders import printable
from lapa.data.json_files import parsed, text_of
from lapa.data.words import words

TABLES = ("captions", "metadata", "clips", "instructions", "annotations")  # the first there is goes first
ONLY_CAPTIONS = ("captions", "instructions")  # a table of this name that cannot be used is an error
TEXTS = ("lang.txt", "language.txt", "instruction.txt", "instructions.txt", "language_instruction.txt", "task.txt",
         "caption.txt", "prompt.txt", "task_description.txt")  # fmt: skip
ABOUT = ("metadata.json", "meta.json", "info.json", "task.json", "instruction.json", "annotation.json",
         "episode.json")  # fmt: skip
STRONG = TEXT[:2] + TEXT[3:7]  # keys of an `ABOUT` that speak of a task
UP = 2  # folders above a clip whose TEXTS are about it


@dataclass(frozen=True)
class Said:
    """An instruction, "" for none, where it stands, and notes (contracts.Episode)."""

    text: str
    origin: str = ""
    notes: tuple[str, ...] = ()


class Captions:
    """The instructions of the clips in the folder `root`; a clip is named by its path within the folder.

    names are those of the clips, files the other files there; table names the one to use, in place of those that are
    found. `folders`: clips are folders of pictures and not files. `whole`: rows about clips that are not among `names`
    are faults. Raises LapaError for a table that is named, or called captions, and cannot be used.
    """

    def __init__(self, root: Path, names: Sequence[str], files: Sequence[Path], table: str | None = None, *,
                 folders: bool = False, whole: bool = True) -> None:  # fmt: skip
        self.root, self._folders, self._whole = root, folders, whole
        self._names, self._clips = list(names), Clips(names)
        self._beside = {path.relative_to(root).as_posix(): path for path in files if path.is_relative_to(root)}
        self._rows: dict[str, str | BadVideo] = {}
        self._origin: dict[str, str] = {}
        self._bad: list[BadVideo] = []  # of rows that tell of no clip
        self._absent: dict[tuple[Path, Path], list[str]] = {}  # table and folder -> files that are not there
        self.used: list[Path] = []
        self.notes: tuple[str, ...] = ()
        if table:
            self._take(_given(root, table))
            return
        left = self._look_for_tables()
        if not self.used:
            left += self._look_in_folders()
        if left:
            shown = ", ".join([*(printable(path.relative_to(root)) for path in left[:4]), *[".."] * (len(left) > 4)])
            self.notes = (f"captions: not taken from {shown} (captions=FILE takes one)",)

    def of(self, name: str) -> Said:
        """The instruction of a clip: of a table, else of a text or JSON beside it, of a text in its folder or above, or
        its name as words.

        Raises BadVideo for a text that cannot be read and for rows that contradict each other.
        """
        said = self._rows.get(name)
        if isinstance(said, BadVideo):
            raise said
        if said is not None:
            return Said(said, self._origin[name])
        notes: tuple[str, ...] = ()
        for path, origin in self._texts(name):
            if text := self._text(path):
                return Said(text, origin, notes)
            if path.suffix.lower() == ".json":
                notes = (*notes, f'captions: no "{TEXT[0]}", "{TEXT[1]}" or the like in {origin}')
        clip = PurePosixPath(name)
        text = words(clip.name if self._folders else clip.stem)
        if not text and self._folders and not re.search(r"\d{2}", clip.name) and clip.parent.name:
            text = words(clip.parent.name)  # pick_up_cup/rgb: the folder above is the clip
        return Said(text, ("names of folders" if self._folders else "names of files") if text else "", notes)

    def files(self) -> list[Path]:
        """The tables and texts that are used: what a signature has to watch."""
        return [*self.used, *dict.fromkeys(path for name in self._names for path, _ in self._texts(name))]

    def problems(self) -> list[BadVideo]:
        """What to say of rows that cannot be used, and of those about clips that are not there."""
        absent = []
        for (table, folder), missing in self._absent.items() if self._whole else ():
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            absent.append(BadVideo(f"{table}: has an instruction for {shown}, which {folder} does not hold."))
        return [*self._bad, *absent]

    # --- tables

    def _look_for_tables(self) -> list[Path]:
        """Take those in the root. Returns the ones that are left alone."""
        stems = {PurePosixPath(name).stem for name in self._names}
        here = [path for name, path in sorted(self._beside.items()) if "/" not in name
                and path.suffix.lower() in KINDS and path.name.lower() not in (*TEXTS, *ABOUT[1:])]  # fmt: skip
        tables = [path for path in here if path.stem not in stems and (path.suffix.lower() != ".txt" or _named(path))]
        named = sorted(filter(_named, tables), key=lambda path: (TABLES.index(path.stem.lower()), path.suffix))
        left: list[Path] = []
        for path in named:
            if self._try(path, self._clips, left):
                left += [other for other in tables if other != path and other not in left]
                break
        else:
            for path in [path for path in tables if path not in named]:
                self._try(path, self._clips, left)
        return left

    def _look_in_folders(self) -> list[Path]:
        """Take the tables in folders of clips, about the clips of the folder: train/metadata.csv, as Hugging Face's
        VideoFolder has it. Returns the ones that are left alone."""
        below: dict[str, list[str]] = {}
        for name in self._names:
            for folder in PurePosixPath(name).parents[:-1]:
                below.setdefault(folder.as_posix(), []).append(name)
        stems, left = {PurePosixPath(name).stem for name in self._names}, list[Path]()
        for name, path in sorted(self._beside.items()):
            names = below.get(PurePosixPath(name).parent.as_posix(), [])
            about_one = path.stem in stems or path.name.lower() in (*TEXTS, *ABOUT)
            if names and _named(path) and path.suffix.lower() in KINDS and not about_one:
                self._try(path, Clips(names), left)
        return left

    def _try(self, path: Path, clips: Clips, left: list[Path]) -> bool:
        """Take a table that was found, or put it among those that are left alone: no table of captions, or of none of
        these clips."""
        strict = path.stem.lower() in ONLY_CAPTIONS and path.parent == self.root
        try:
            rows = list(read_table(path, clips))
        except NoTable as fault:
            if strict:
                raise LapaError(f"{fault} To read the folder without it, give it another name.") from None
            left.append(path)
            return False
        except LapaError:
            if strict:
                raise
            left.append(path)
            return False
        if not strict and not any(isinstance(row, Caption) and clips.find(row.file) for row in rows):
            left.append(path)
            return False
        self._enter(path, rows, clips)
        return True

    def _take(self, path: Path) -> None:
        self._enter(path, list(read_table(path, self._clips)), self._clips)

    def _enter(self, path: Path, rows: Sequence[Caption | BadVideo], clips: Clips) -> None:
        self.used.append(path)
        folder = self.root if clips is self._clips else path.parent
        for row in rows:
            if isinstance(row, BadVideo):
                self._bad.append(row)
                continue
            found = clips.find(row.file)
            if len(found) > 1:
                shown = ", ".join(found[:3])
                self._bad.append(BadVideo(f"{row.where}: {row.file} may be {shown}. Write its folder too."))
            elif not found:
                self._absent.setdefault((path, folder), []).append(row.file)
            else:
                self._say(found[0], row, path)

    def _say(self, name: str, row: Caption, path: Path) -> None:
        before = self._rows.setdefault(name, row.text)
        self._origin.setdefault(name, printable(path.name))
        if before != row.text and isinstance(before, str):
            self._rows[name] = BadVideo(f'{row.where}: a second instruction for {name}. Keep one of "{row.text}" and '
                                        f'"{before}".')  # fmt: skip

    # --- texts

    def _texts(self, name: str) -> Iterator[tuple[Path, str]]:
        """Files that may hold the instruction of a clip, nearest first, and what to call them."""
        clip = PurePosixPath(name)
        bare = clip if self._folders else clip.with_suffix("")
        for kind in (".txt", ".json"):
            if found := self._beside.get(f"{bare}{kind}"):
                yield found, f"{kind} files of the clips"
        folder = clip if self._folders else clip.parent
        above = [folder, *folder.parents][: UP + 1]
        for place in above:
            for text in TEXTS:
                if found := self._beside.get((place / text).as_posix()):
                    yield found, text
        for place in above[:2] if self._folders else above[:1]:
            for text in ABOUT if place != PurePosixPath() else ():
                if found := self._beside.get((place / text).as_posix()):
                    yield found, text

    def _text(self, path: Path) -> str:
        """The instruction in a text or JSON; of a text of several lines about a whole folder the first. Raises BadVideo
        for a file that cannot be read."""
        try:
            text = text_of(path)
        except LapaError as fault:
            raise BadVideo(f"{fault} It may hold an instruction.") from None
        if path.suffix.lower() == ".json":
            keys = STRONG if path.name.lower() in ABOUT else TEXT
            return _of_object(parsed(text, printable(path)), keys)
        if path.name.lower() in TEXTS:
            lines = [" ".join(line.split()) for line in text.splitlines()]
            return next((line for line in lines if line and not line.lower().startswith("confidence:")), "")
        return " ".join(text.split())


def _of_object(value: Any, keys: Sequence[str]) -> str:
    """The instruction in a JSON object, by the first of `keys` that has one; "" for none."""
    found = {str(key).casefold(): text for key, text in value.items()} if isinstance(value, dict) else {}
    texts = [text[0] if isinstance(text, list) and text else text for text in (found.get(key) for key in keys)]
    return next((" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()), "")


def _named(path: Path) -> bool:
    return path.stem.lower() in TABLES


def _given(root: Path, table: str) -> Path:
    for path in (root / table, Path(table).expanduser()):
        if path.is_file():
            return path
    raise LapaError(f"{table}: there is no such table of captions, neither in {root} nor here.")
