"""Groups of named arrays that are filled draw by draw, in memory or in a netCDF file.

Both are filled in the same way: :meth:`space` makes room for an array and gives what its parts are
assigned to. In a file nothing but the part at hand is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xarray as xr

from ppl_models.errors import PplError

if TYPE_CHECKING:
    import h5netcdf

Coords = Mapping[str, np.ndarray]
Attrs = Mapping[str, str | int | float]


class Groups(Protocol):
    """Where groups are put."""

    def space(
        self, group: str, name: str, dims: tuple[str, ...], shape: tuple[int, ...], dtype: np.dtype
    ) -> Any:
        """Room for an array, to be assigned to in parts.

        Args:
            group: it is part of.
            name: of the variable.
            dims: names of its dimensions.
            shape: of the whole.
            dtype: of the numbers.
        """


class MemoryGroups:
    """Groups in memory, as data sets of xarray.

    Args:
        coords: by dimension; others count from 0.
    """

    def __init__(self, coords: Coords) -> None:
        self.coords = coords
        self._variables: dict[str, dict[str, tuple[tuple[str, ...], np.ndarray]]] = {}

    def space(
        self, group: str, name: str, dims: tuple[str, ...], shape: tuple[int, ...], dtype: np.dtype
    ) -> Any:
        """See :class:`Groups`."""
        array = np.empty(shape, dtype)
        self._variables.setdefault(group, {})[name] = (dims, array)
        return array

    def datasets(self) -> dict[str, xr.Dataset]:
        """The groups by name."""
        found = {}
        for group, variables in self._variables.items():
            sizes = {
                d: n for dims, v in variables.values() for d, n in zip(dims, v.shape, strict=True)
            }
            coords = {d: self.coords.get(d, np.arange(n)) for d, n in sizes.items()}
            found[group] = xr.Dataset(variables, coords)
        return found


class NetcdfGroups:
    """Groups in a netCDF file, which has its name from the moment that it is complete.

    Args:
        path: of the file.
        coords: by dimension; others count from 0.
        attrs: of the file.
        overwrite: replace a file that is there.

    Raises:
        PplError: the file exists, or its folder does not.
    """

    def __init__(
        self, path: str | Path, coords: Coords, attrs: Attrs, *, overwrite: bool = False
    ) -> None:
        self.path = Path(path)
        check_path(self.path, overwrite)
        self.coords, self.attrs = coords, attrs
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._file: h5netcdf.File

    def __enter__(self) -> NetcdfGroups:
        import h5netcdf

        self._file = h5netcdf.File(self._partial, "w")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            with self._file as file:
                if error is None:
                    file.attrs.update(self.attrs)
            if error is None:
                self._partial.replace(self.path)
        finally:  # a full disk fails at closing
            self._partial.unlink(missing_ok=True)

    def space(
        self, group: str, name: str, dims: tuple[str, ...], shape: tuple[int, ...], dtype: np.dtype
    ) -> Any:
        """See :class:`Groups`."""
        place = self._file.groups.get(group) or self._file.create_group(group)
        for dim, size in zip(dims, shape, strict=True):
            if dim not in place.dimensions:
                place.dimensions[dim] = size
                values = np.asarray(self.coords.get(dim, np.arange(size)))
                self._coordinate(place, dim, values)
        return place.create_variable(name, dims, dtype)

    @staticmethod
    def _coordinate(place: Any, dim: str, values: np.ndarray) -> None:
        if values.dtype.kind in "UO":  # names
            import h5py

            place.create_variable(dim, (dim,), h5py.string_dtype(), data=values.astype(object))
        else:
            place.create_variable(dim, (dim,), values.dtype, data=values)


def check_path(path: Path, overwrite: bool) -> None:
    """Refuse a file that is there, or that can be put nowhere.

    Args:
        path: of the file.
        overwrite: whether it may be replaced.

    Raises:
        PplError: it exists, or its folder does not.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        what = "is a folder" if path.is_dir() else "exists already"
        raise PplError(f"{path} {what}; name another file by out, or give overwrite=True")
    if not path.parent.is_dir():
        raise PplError(f"the folder {path.parent} of {path.name!r} does not exist; make it first")
