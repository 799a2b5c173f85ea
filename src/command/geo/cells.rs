//! Places on Earth as scores of sorted sets, with the bits that Redis has in them.
//!
//! The map is a square grid: longitudes from west to east, and the latitudes that Web Mercator
//! shows from south to north. Each step halves both, so a grid of 26 steps has 2^26 columns and as
//! many rows. A cell's number has the bits of its column and of its row in turn. So the cells
//! inside a cell of a coarser grid have numbers in sequence, and a sorted set finds them as a range
//! of scores.

use std::f64::consts::PI;
use std::ops::Range;

/// Steps of the grid whose cells' numbers are scores.
const FINEST: u32 = 26;
/// Highest longitude and latitude; the lowest are the same below zero.
const LONGITUDES: f64 = 180.0;
const LATITUDES: f64 = 85.051_128_78;
/// The latitudes of the geohashes that other programs read.
const STANDARD_LATITUDES: f64 = 90.0;
/// Metres: the quadratic mean radius of WGS 84.
const EARTH_RADIUS: f64 = 6_372_797.560_856;
/// Metres from the middle of the map to its edge.
const MAP_EDGE: f64 = 20_037_726.37;

/// Degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub longitude: f64,
    pub latitude: f64,
}

impl Point {
    /// Whether the map shows it.
    pub fn is_on_map(self) -> bool {
        self.longitude.abs() <= LONGITUDES && self.latitude.abs() <= LATITUDES
    }

    /// The number of its cell in the finest grid. The point must be on the map.
    pub fn score(self) -> f64 {
        Cell::of(self, LATITUDES, FINEST).number() as f64
    }

    /// The middle of the cell that has this number. Any score gives a point on the map.
    pub fn of_score(score: f64) -> Point {
        let area = Cell::numbered(whole(score)).area();
        let middle = |(low, high): (f64, f64), most: f64| ((low + high) / 2.0).clamp(-most, most);
        Point {
            longitude: middle(area.longitudes, LONGITUDES),
            latitude: middle(area.latitudes, LATITUDES),
        }
    }

    /// Metres on a sphere, by the haversine formula.
    pub fn distance(self, other: Point) -> f64 {
        let sine = ((radians(other.longitude) - radians(self.longitude)) / 2.0).sin();
        if sine == 0.0 {
            return distance_of_latitudes(self.latitude, other.latitude);
        }
        let (from, to) = (radians(self.latitude), radians(other.latitude));
        let sine_of_latitudes = ((to - from) / 2.0).sin();
        let a = sine_of_latitudes * sine_of_latitudes + from.cos() * to.cos() * sine * sine;
        // Rounding may bring the root of opposite points above 1, which is no sine.
        2.0 * EARTH_RADIUS * a.sqrt().min(1.0).asin()
    }

    /// The standard geohash. Scores have the bits of ten of its letters; the last one is always 0.
    pub fn geohash(self) -> String {
        const LETTERS: &[u8; 32] = b"0123456789bcdefghjkmnpqrstuvwxyz";
        let number = Cell::of(self, STANDARD_LATITUDES, FINEST).number();
        let letter = |place: u32| char::from(LETTERS[(number >> (47 - 5 * place)) as usize & 31]);
        (0..10).map(letter).chain(['0']).collect()
    }
}

/// A score as an integer of 64 bits. Negative ones wrap around, and what is too large is 0.
fn whole(score: f64) -> u64 {
    const MOST: f64 = 18_446_744_073_709_551_616.0;
    match score {
        _ if score < 0.0 => score as i64 as u64,
        _ if score < MOST => score as u64,
        _ => 0,
    }
}

fn radians(degrees: f64) -> f64 {
    degrees * (PI / 180.0)
}

fn degrees(radians: f64) -> f64 {
    radians / (PI / 180.0)
}

fn distance_of_latitudes(one: f64, other: f64) -> f64 {
    EARTH_RADIUS * (radians(other) - radians(one)).abs()
}

/// What a search covers, in metres, around its centre.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Circle { radius: f64 },
    Box { width: f64, height: f64 },
}

impl Shape {
    /// The distance of a point from the centre, if the point is inside.
    pub fn distance_inside(self, centre: Point, point: Point) -> Option<f64> {
        let distance = centre.distance(point);
        let is_outside = match self {
            Shape::Circle { radius } => distance > radius,
            Shape::Box { width, height } => {
                let same_latitude = Point {
                    longitude: centre.longitude,
                    latitude: point.latitude,
                };
                distance_of_latitudes(centre.latitude, point.latitude) > height / 2.0
                    || point.distance(same_latitude) > width / 2.0
            }
        };
        (!is_outside).then_some(distance)
    }

    /// From the centre to the point that is furthest away.
    fn reach(self) -> f64 {
        match self {
            Shape::Circle { radius } => radius,
            Shape::Box { width, height } => ((width / 2.0) * (width / 2.0) + (height / 2.0) * (height / 2.0)).sqrt(),
        }
    }

    /// Longitudes and latitudes around the shape, which may lie beyond the map.
    fn bounds(self, centre: Point) -> Area {
        let (to_side, to_top) = match self {
            Shape::Circle { radius } => (radius, radius),
            Shape::Box { width, height } => (width / 2.0, height / 2.0),
        };
        let latitudes = degrees(to_top / EARTH_RADIUS);
        // A degree of longitude is shortest at the edge that is nearer to a pole.
        let edge = match centre.latitude < 0.0 {
            true => centre.latitude - latitudes,
            false => centre.latitude + latitudes,
        };
        let longitudes = degrees(to_side / EARTH_RADIUS / radians(edge).cos());
        Area {
            longitudes: (centre.longitude - longitudes, centre.longitude + longitudes),
            latitudes: (centre.latitude - latitudes, centre.latitude + latitudes),
        }
    }

    /// The ranges of scores that have all members inside, in the order in which Redis looks at
    /// them: that of an unsorted reply. Two of them may be the same if the shape is as large as
    /// the map.
    pub fn scores(self, centre: Point) -> Vec<Range<f64>> {
        let bounds = self.bounds(centre);
        let mut cell = Cell::of(centre, LATITUDES, steps_for(self.reach(), centre.latitude));
        if cell.steps > 1 && !cell.reaches(bounds) {
            cell = Cell::of(centre, LATITUDES, cell.steps - 1);
        }
        let cells = NEIGHBOURS
            .iter()
            .filter(|(column, row)| cell.needs(bounds, *column, *row));
        let mut last = None;
        let mut ranges = vec![cell.scores()];
        for neighbour in cells.map(|(column, row)| cell.neighbour(*column, *row)) {
            if last != Some(neighbour) {
                ranges.push(neighbour.scores());
                last = Some(neighbour);
            }
        }
        ranges
    }
}

/// Steps of the grid in which a cell and its neighbours have a circle of this radius, almost
/// always.
fn steps_for(radius: f64, latitude: f64) -> u32 {
    if radius == 0.0 {
        return FINEST;
    }
    let (mut size, mut steps) = (radius, -1);
    while size < MAP_EDGE {
        size *= 2.0;
        steps += 1;
    }
    // Towards the poles, a cell is narrower than the map shows it.
    steps -= match latitude.abs() {
        latitude if latitude > 80.0 => 2,
        latitude if latitude > 66.0 => 1,
        _ => 0,
    };
    steps.clamp(1, FINEST as i32) as u32
}

/// Where the neighbours of a cell are: columns to the east, rows to the north.
const NEIGHBOURS: [(i32, i32); 8] = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)];

/// From west to east, and from south to north.
#[derive(Clone, Copy, Debug)]
struct Area {
    longitudes: (f64, f64),
    latitudes: (f64, f64),
}

/// A cell of the grid of so many steps. The eastern and the northern edge of the map have a column
/// and a row of their own, behind the last ones of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    column: u32,
    row: u32,
    steps: u32,
}

impl Cell {
    /// The cell that a point is in, on a map that shows latitudes up to this one.
    fn of(point: Point, latitudes: f64, steps: u32) -> Cell {
        let place = |value: f64, most: f64| ((value + most) / (most + most) * (1_u64 << steps) as f64) as u32;
        Cell {
            column: place(point.longitude, LONGITUDES),
            row: place(point.latitude, latitudes),
            steps,
        }
    }

    fn numbered(number: u64) -> Cell {
        Cell {
            column: every_other(number >> 1),
            row: every_other(number),
            steps: FINEST,
        }
    }

    fn number(self) -> u64 {
        spread(self.column) << 1 | spread(self.row)
    }

    /// The numbers that the cells inside it have in the finest grid.
    fn scores(self) -> Range<f64> {
        let shift = 2 * (FINEST - self.steps);
        let number = self.number();
        (number << shift) as f64..((number + 1) << shift) as f64
    }

    fn area(self) -> Area {
        let edge = |place: u32, most: f64| -most + f64::from(place) / (1_u64 << self.steps) as f64 * (most + most);
        let edges = |place: u32, most: f64| (edge(place, most), edge(place.wrapping_add(1), most));
        Area {
            longitudes: edges(self.column, LONGITUDES),
            latitudes: edges(self.row, LATITUDES),
        }
    }

    /// The cell so many columns to the east and rows to the north. Behind the last one comes the
    /// first one.
    fn neighbour(self, columns: i32, rows: i32) -> Cell {
        let moved = |place: u32, by: i32| match by {
            0 => place,
            _ => place.wrapping_add_signed(by) & ((1 << self.steps) - 1),
        };
        Cell {
            column: moved(self.column, columns),
            row: moved(self.row, rows),
            steps: self.steps,
        }
    }

    /// Whether the cell and its neighbours cover these bounds.
    fn reaches(self, bounds: Area) -> bool {
        let area = |columns, rows| self.neighbour(columns, rows).area();
        let falls_short = area(0, 1).latitudes.1 < bounds.latitudes.1
            || area(0, -1).latitudes.0 > bounds.latitudes.0
            || area(1, 0).longitudes.1 < bounds.longitudes.1
            || area(-1, 0).longitudes.0 > bounds.longitudes.0;
        !falls_short
    }

    /// Whether the search must look at this neighbour: the cell itself may end beyond the bounds
    /// on that side. In the coarsest grid all cells are looked at.
    fn needs(self, bounds: Area, columns: i32, rows: i32) -> bool {
        let area = self.area();
        let ends_beyond = |(low, high): (f64, f64), (least, most): (f64, f64), by: i32| match by {
            ..0 => low < least,
            0 => false,
            1.. => high > most,
        };
        self.steps < 2
            || !(ends_beyond(area.longitudes, bounds.longitudes, columns)
                || ends_beyond(area.latitudes, bounds.latitudes, rows))
    }
}

/// Shifts and masks that move the bits of 32 apart, by halves.
const HALVES: [(u32, u64); 5] = [
    (16, 0x0000_ffff_0000_ffff),
    (8, 0x00ff_00ff_00ff_00ff),
    (4, 0x0f0f_0f0f_0f0f_0f0f),
    (2, 0x3333_3333_3333_3333),
    (1, 0x5555_5555_5555_5555),
];

/// The bits with a 0 above each of them.
fn spread(bits: u32) -> u64 {
    HALVES
        .iter()
        .fold(bits.into(), |bits: u64, (shift, mask)| (bits | bits << shift) & mask)
}

/// Every other bit, from the lowest one on: what [`spread`] was given.
fn every_other(bits: u64) -> u32 {
    HALVES.iter().rev().fold(bits, |bits, (shift, mask)| {
        let kept = bits & mask;
        kept | kept >> shift
    }) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn points() -> impl Strategy<Value = Point> {
        (-LONGITUDES..=LONGITUDES, -LATITUDES..=LATITUDES)
            .prop_map(|(longitude, latitude)| Point { longitude, latitude })
    }

    fn covers(shape: Shape, centre: Point, score: f64) -> bool {
        shape.scores(centre).iter().any(|range| range.contains(&score))
    }

    #[test]
    fn scores_have_the_bits_of_redis() {
        // Replies of redis-server 7.0.
        for (longitude, latitude, score, geohash) in [
            (13.361389, 38.115556, 3479099956230698.0, "sqc8b49rny0"),
            (15.087269, 37.502669, 3479447370796909.0, "sqdtr74hyu0"),
            (-180.0, -85.05112878, 0.0, "00bh0hbj200"),
            (180.0, 85.05112878, 13510798882111488.0, "bp05b5048p0"),
            (0.0, 0.0, 3377699720527872.0, "s0000000000"),
        ] {
            let point = Point { longitude, latitude };
            assert_eq!(point.score(), score, "{point:?}");
            assert_eq!(Point::of_score(score).geohash(), geohash, "{point:?}");
        }
    }

    #[test]
    fn any_score_is_on_the_map() {
        for score in [
            -1.0,
            -1e300,
            f64::NEG_INFINITY,
            f64::INFINITY,
            1e19,
            1.8446744073709552e19,
            0.5,
        ] {
            assert!(Point::of_score(score).is_on_map(), "{score}");
        }
    }

    #[test]
    fn opposite_points_have_a_distance() {
        for latitude in (0..85).map(f64::from) {
            let (longitude, half) = (12.25, EARTH_RADIUS * PI);
            let opposite = Point {
                longitude: longitude - 180.0,
                latitude: -latitude,
            };
            let distance = Point { longitude, latitude }.distance(opposite);
            assert!((distance - half).abs() < 1.0, "{latitude}: {distance}");
        }
    }

    proptest! {
        #[test]
        fn bits_come_back(bits: u32) {
            prop_assert_eq!(every_other(spread(bits)), bits);
            prop_assert_eq!(every_other(spread(bits) << 1), 0);
        }

        /// A cell of the finest grid is half a metre wide or narrower.
        #[test]
        fn a_score_is_near_its_point(point in points()) {
            let distance = point.distance(Point::of_score(point.score()));
            prop_assert!(distance < 0.5, "{}", distance);
        }

        /// Redis misses some members near the poles and at the edge of the map, and so do we.
        #[test]
        fn a_search_covers_what_is_inside(
            longitude in -120.0..120.0,
            latitude in -60.0..60.0,
            east in -1.0..1.0,
            north in -1.0..1.0,
            size in 1.0..500_000.0,
        ) {
            let centre = Point { longitude, latitude };
            let point = Point {
                longitude: longitude + east * size / 30_000.0,
                latitude: latitude + north * size / 60_000.0,
            };
            for shape in [Shape::Circle { radius: size }, Shape::Box { width: size, height: size }] {
                if shape.distance_inside(centre, point).is_some() {
                    prop_assert!(covers(shape, centre, point.score()), "{:?}", shape);
                }
            }
        }

        #[test]
        fn no_search_is_too_large(centre in points(), size: f64, other: f64) {
            for shape in [Shape::Circle { radius: size.abs() }, Shape::Box { width: size.abs(), height: other.abs() }] {
                prop_assert!((1..=9).contains(&shape.scores(centre).len()));
            }
        }
    }
}
