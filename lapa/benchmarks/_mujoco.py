"""What benchmarks of others share: drawing without a screen, pictures drawn when they are looked at, their rows."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes.util import find_library
from typing import Any

import numpy as np

from lapa.contracts import Array, LapaError, Observation

GL = "MUJOCO_GL"
LARGEST = 4096  # pixels a side of a picture
LEANS = 0.1  # cameras that look straight down have no upper side: their tops point up or down by less than this


def without_a_screen() -> None:
    """Choose how MuJoCo draws where neither the user nor a screen says it; says once what was chosen.

    Call it before `mujoco` is imported: it chooses when it is loaded.
    """
    if os.environ.get(GL) or os.environ.get("DISPLAY") or "mujoco" in sys.modules:
        return
    found = next((way for way, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if find_library(library)), None)
    if found is None:
        print(f"{GL} is not set, and there is neither EGL nor OSMesa to draw with and no screen: pictures will fail. "
              "Install libegl1 and libgl1-mesa-dri, or libosmesa6.", file=sys.stderr)  # fmt: skip
        return
    os.environ[GL] = found
    print(f"{GL} is not set and there is no screen: MuJoCo draws with {found}.", file=sys.stderr)


def require_size(name: str, size: int) -> None:
    """Raise LapaError where the benchmark of this name cannot draw pictures of so many pixels a side."""
    if not 1 <= size <= LARGEST:
        raise LapaError(f"{name}: size is 1 to {LARGEST}, not {size}.")


_OPEN: list[weakref.ref[Drawer]] = []


def _close_all() -> None:
    """At the end of the process, before MuJoCo ends EGL: it complains of each drawer that is still open."""
    for each in _OPEN:
        if (drawer := each()) is not None:
            drawer.close()


class Drawer:
    """Draws the cameras of one model at size x size pixels. Worlds of the same model may share it: it keeps meshes and
    textures, and what stands where comes from the world that is drawn."""

    def __init__(self, model: Any, size: int, shadows: bool, hidden: Sequence[int] = ()) -> None:
        """hidden: the groups of geoms that are not drawn, such as those that only collide."""
        import mujoco

        model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(size, model.vis.global_.offheight)
        if not shadows:  # without a GPU 10 to 20 times as fast; it must be set before the first picture
            model.vis.quality.shadowsize = 0
            model.vis.quality.offsamples = 0
        self._mujoco, self._renderer = mujoco, mujoco.Renderer(model, size, size)
        atexit.unregister(_close_all)
        atexit.register(_close_all)  # what is registered last comes first: before MuJoCo's end, and dm_control's
        _OPEN.append(weakref.ref(self))
        self._option = mujoco.MjvOption()
        self._option.geomgroup[list(hidden)] = 0

    def draw(self, model: Any, data: Any, camera: str, spots: Sequence[tuple[Array, Array]] = ()) -> Array:
        """uint8 [size, size, 3], upright: a camera whose top points to the ground is turned by 180 degrees.

        spots: flat discs of 2 cm to draw beside the model: the place [3] and the colour [4] of each.
        """
        lens = self._mujoco.MjvCamera()
        lens.type, lens.fixedcamid = self._mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(camera).id
        every = self._mujoco.mjtCatBit.mjCAT_ALL
        self._mujoco.mjv_updateScene(model, data, self._option, None, lens, every, self._renderer.scene)
        for place, colour in spots:
            self._add(place, colour)
        picture = np.asarray(self._renderer.render())
        top = data.camera(camera).xmat.reshape(3, 3)[2, 1]  # how far the top of the picture points up
        return np.ascontiguousarray(picture[::-1, ::-1]) if top < -LEANS else picture

    def _add(self, place: Array, colour: Array) -> None:
        scene, disc = self._renderer.scene, self._mujoco.mjtGeom.mjGEOM_CYLINDER
        flat = np.array([0.02, 0.001, 0.0])  # radius, half its height
        self._mujoco.mjv_initGeom(scene.geoms[scene.ngeom], disc, flat, place, np.eye(3).ravel(), colour)
        scene.ngeom += 1

    def close(self) -> None:
        """Give the memory back."""
        self._renderer.close()


class Pictures(Mapping[str, Array]):
    """{camera: picture} of a world as it is now, drawn when looked at: a policy that answers with several actions does
    not look at each step, and drawing takes most of the time.

    clock: a number that changes when the world does. Looking later than that is an error of the program.
    """

    def __init__(self, cameras: tuple[str, ...], draw: Callable[[str], Array], clock: Callable[[], int]) -> None:
        self._cameras, self._draw, self._clock, self._now = cameras, draw, clock, clock()
        self._drawn: dict[str, Array] = {}

    def __getitem__(self, camera: str) -> Array:
        if camera not in self._cameras:
            raise KeyError(camera)
        if camera not in self._drawn:
            if self._clock() != self._now:
                raise RuntimeError(f"The picture of {camera} was not looked at before the world went on.")
            self._drawn[camera] = self._draw(camera)
        return self._drawn[camera]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cameras)

    def __len__(self) -> int:
        return len(self._cameras)


class OwnRow:
    """An actor that gives the next action of each episode it is asked about."""

    def __init__(self, act: Callable[[int], Array]) -> None:
        self._act = act

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        """float32 [B, 1, A]; without `ids`, of the first B episodes."""
        return np.stack([self._act(int(i)) for i in (range(len(observations)) if ids is None else ids)])[:, None]


@contextmanager
def numpy_state_kept() -> Iterator[None]:
    """Whatever draws from numpy's global generator inside changes nothing outside."""
    before = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
