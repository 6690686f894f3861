"""A synthetic town as a nuPlan map: the layers that nuplan-devkit's `NuPlanMap` reads, in one
GeoPackage.

Layers, columns and what refers to what are those of nuplan-devkit (`nuplan/common/maps/nuplan_map`,
`nuplan/database/maps_db/gpkg_mapsdb.py`); geometry is in WGS 84, as in the published maps. A column
of ids holds -1 where there is none.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from convoy.errors import ConvoyError
from convoy.synthetic.scene import LANE_WIDTH, ROAD_HALF_WIDTH, WALKWAY_WIDTH
from convoy.synthetic.shapes import Array, Box, Lane
from convoy.synthetic.town import SPEED_LIMIT, Town
from convoy.synthetic.traffic import turn_of

VERSION = "nuplan-maps-v1.0"

_NONE = -1
_TRAFFIC_LIGHT = 2  # StopLineType
_CONNECTOR_TYPES = {0: 0, 1: 1, -1: 2}  # LaneConnectorType of a turn: straight, left, right


@dataclass(frozen=True)
class Location:
    """One of nuPlan's four cities: its map's version and projection, and where the town is put, UTM
    metres."""

    name: str
    version: str
    projection: str
    east: float
    north: float


LOCATIONS = (
    Location("us-ma-boston", "9.12.1817", "EPSG:32619", 331_000.0, 4_690_500.0),
    Location("us-nv-las-vegas-strip", "9.15.1915", "EPSG:32611", 664_500.0, 3_997_500.0),
    Location("us-pa-pittsburgh-hazelwood", "9.17.1937", "EPSG:32617", 587_000.0, 4_475_500.0),
    Location("sg-one-north", "9.17.1964", "EPSG:32648", 365_000.0, 143_500.0),
)


def edge_id(index: int) -> int:
    """Map id of a lane or lane connector."""
    return 1000 + index


def block_id(index: int) -> int:
    """Map id of the roadblock, or roadblock connector, that a lane or connector is alone in."""
    return 2000 + index


def write_index(root: Path) -> None:
    """Write the file that names all locations and their versions."""
    index = {location.name: {"version": location.version, "layers": {}} for location in LOCATIONS}
    (root / f"{VERSION}.json").write_text(json.dumps(index, indent=1) + "\n")


def write_map(root: Path, location: Location, town: Town) -> Path:
    """Write `<root>/<location>/<version>/map.gpkg`; the same town gives the same bytes.

    Raises `ConvoyError` where the packages for it are not installed.
    """
    try:
        import geopandas
        import pandas
        import pyogrio
        from shapely.geometry import LineString, Polygon
    except ImportError as error:
        raise ConvoyError(
            f"Writing nuPlan maps needs {error.name}, which is not installed. "
            "Install Convoy's navsim extra, or run make venv."
        ) from error

    path = root / location.name / location.version / "map.gpkg"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.gpkg")
    temporary.unlink(missing_ok=True)
    # GeoPackages hold the date of writing; and a file that is renamed when whole needs no sync per
    # layer.
    options = {"OGR_CURRENT_DATE": "2021-01-01T00:00:00.000Z", "OGR_SQLITE_SYNCHRONOUS": "OFF"}
    pyogrio.set_gdal_config_options(options)
    try:
        meta = pandas.DataFrame(
            [
                ("name", location.name),
                ("version", location.version),
                ("projectedCoordSystem", location.projection),
            ],
            columns=["key", "value"],
        )
        pyogrio.write_dataframe(meta, temporary, layer="meta", driver="GPKG")
        for name, (kind, columns, rows) in _layers(town).items():
            shape = LineString if kind == "LineString" else Polygon
            geometry = [shape(points + (location.east, location.north)) for points, *_ in rows]
            table = pandas.DataFrame([row for _, *row in rows], columns=columns).astype(
                {"fid": "int64"}
            )
            frame = geopandas.GeoDataFrame(table, geometry=geometry, crs=location.projection)
            pyogrio.write_dataframe(
                frame.to_crs("EPSG:4326"),
                temporary,
                layer=name,
                driver="GPKG",
                append=True,
                geometry_type=kind,
            )
    except RuntimeError as error:  # what pyogrio makes of a full disk
        raise ConvoyError(f"Can't write {path}: {error}") from error
    finally:
        pyogrio.set_gdal_config_options(dict.fromkeys(options))
    temporary.replace(path)
    return path


# Geometry type, columns, rows that begin with their points (N, 2).
_Layer = tuple[str, list[str], list[tuple]]


def _layers(town: Town) -> dict[str, _Layer]:
    half = LANE_WIDTH / 2
    lanes = [edge for edge in town.edges if not edge.is_connector]
    connectors = [edge for edge in town.edges if edge.is_connector]
    boundary = {
        (edge.index, side): 4000 + 2 * edge.index + side for edge in town.edges for side in (0, 1)
    }
    stop = {(lane.junction, lane.arm): 6000 + i for i, lane in enumerate(lanes)}
    entered_from = {f: lane.index for lane in lanes for f in lane.following}
    outer = ROAD_HALF_WIDTH + WALKWAY_WIDTH
    walkways = [
        road.centre.strip(*sorted((side * ROAD_HALF_WIDTH, side * outer)))
        for road in town.roads
        for side in (-1, 1)
    ] + [corner for junction in town.junctions for corner in junction.corners()]

    return {
        "lanes_polygons": (
            "Polygon",
            ["fid", "lane_fid", "lane_group_fid", "lane_index", "speed_limit_mps"]
            + ["left_boundary_fid", "right_boundary_fid"],
            [
                (
                    edge.path.strip(-half, half),
                    edge_id(edge.index),
                    edge_id(edge.index),
                    block_id(edge.index),
                )
                + (0, SPEED_LIMIT, boundary[edge.index, 0], boundary[edge.index, 1])
                for edge in lanes
            ],
        ),
        "lane_connectors": (
            "LineString",
            [
                "fid",
                "exit_lane_fid",
                "entry_lane_fid",
                "lane_group_connector_fid",
                "intersection_fid",
            ]
            + ["turn_type_fid", "speed_limit_mps", "traffic_light_stop_line_fids"],
            [
                (
                    edge.path.points,
                    edge_id(edge.index),
                    edge_id(entered_from[edge.index]),
                    edge_id(edge.following[0]),
                )
                + (
                    block_id(edge.index),
                    3000 + edge.junction,
                    _CONNECTOR_TYPES[turn_of(edge)],
                    SPEED_LIMIT,
                )
                + (str(stop[edge.junction, edge.arm]),)
                for edge in connectors
            ],
        ),
        "gen_lane_connectors_scaled_width_polygons": (
            "Polygon",
            ["fid", "lane_connector_fid", "left_boundary_fid", "right_boundary_fid"],
            [
                (
                    edge.path.strip(-half, half),
                    7000 + i,
                    edge_id(edge.index),
                    *(boundary[edge.index, s] for s in (0, 1)),
                )
                for i, edge in enumerate(connectors)
            ],
        ),
        "baseline_paths": (
            "LineString",
            ["fid", "lane_fid", "lane_connector_fid", "path_type_fid"],
            [
                (edge.path.points, 8000 + edge.index)
                + (
                    (_NONE, edge_id(edge.index))
                    if edge.is_connector
                    else (edge_id(edge.index), _NONE)
                )
                + (0,)
                for edge in town.edges
            ],
        ),
        "boundaries": (
            "LineString",
            ["fid", "boundary_type_fid"],
            [
                (_side(town.edges[index].path, side), fid, 0)
                for (index, side), fid in boundary.items()
            ],
        ),
        "lane_groups_polygons": (
            "Polygon",
            ["fid", "from_edge_fid", "to_edge_fid"],
            [
                (edge.path.strip(-ROAD_HALF_WIDTH + half, half), block_id(edge.index), _NONE, _NONE)
                for edge in lanes
            ],
        ),
        "lane_group_connectors": (
            "Polygon",
            ["fid", "from_lane_group_fid", "to_lane_group_fid", "intersection_fid"],
            [
                (
                    edge.path.strip(-half, half),
                    block_id(edge.index),
                    block_id(entered_from[edge.index]),
                )
                + (block_id(edge.following[0]), 3000 + edge.junction)
                for edge in connectors
            ],
        ),
        "intersections": (
            "Polygon",
            ["fid", "intersection_type_fid"],
            [(junction.polygon, 3000 + i, 0) for i, junction in enumerate(town.junctions)],
        ),
        "stop_polygons": (
            "Polygon",
            ["fid", "stop_polygon_type_fid"],
            [
                (_stop_line(edge.path), stop[edge.junction, edge.arm], _TRAFFIC_LIGHT)
                for edge in lanes
            ],
        ),
        "road_segments": (
            "Polygon",
            ["fid"],
            [
                (road.centre.strip(-ROAD_HALF_WIDTH, ROAD_HALF_WIDTH), 9000 + index)
                for index, road in enumerate(town.roads)
            ],
        ),
        "walkways": (
            "Polygon",
            ["fid"],
            [(points, 10_000 + index) for index, points in enumerate(walkways)],
        ),
        "crosswalks": (
            "Polygon",
            ["fid"],
            [(road.crossing(), 11_000 + i) for i, road in enumerate(town.roads)],
        ),
        "generic_drivable_areas": ("Polygon", ["fid"], []),
        "carpark_areas": ("Polygon", ["fid"], []),
    }


def _side(path: Lane, side: int) -> Array:
    return path.offset(-LANE_WIDTH / 2 if side else LANE_WIDTH / 2)


def _stop_line(lane: Lane) -> Array:
    x, y, heading = lane.pose(float(lane.station[-1]) - 0.5)
    return Box(x, y, heading, 1.0, LANE_WIDTH, 0.0, (0, 0, 0)).corners()
