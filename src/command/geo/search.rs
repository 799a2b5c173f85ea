//! Searches: GEOSEARCH, GEORADIUS and their like.

use bytes::Bytes;

use super::cells::{Point, Shape};
use super::{distance_reply, places, point, point_reply, unit};
use crate::command::args::{SYNTAX, int, is, text};
use crate::command::float::parse_exact;
use crate::command::sorted::Sorted;
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::database::hot::own;
use crate::model::Scores;

/// What comparing one member with the shape costs, as bytes to go through.
const COMPARED: usize = 400;

/// Which arguments a command takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// GEORADIUS: a point and a radius come first.
    AroundPoint { may_store: bool },
    /// GEORADIUSBYMEMBER: a member and a radius come first.
    AroundMember { may_store: bool },
    /// GEOSEARCH: all is among the options.
    Search,
    /// GEOSEARCHSTORE: the key to store at comes first.
    Store,
}

impl Form {
    fn is_search(self) -> bool {
        matches!(self, Form::Search | Form::Store)
    }

    fn may_name_store(self) -> bool {
        matches!(
            self,
            Form::AroundPoint { may_store: true } | Form::AroundMember { may_store: true }
        )
    }
}

pub(super) fn georadius(data: &mut Data, args: Args) -> Outcome {
    search(data, args, Form::AroundPoint { may_store: true })
}

pub(super) fn georadius_ro(data: &mut Data, args: Args) -> Outcome {
    search(data, args, Form::AroundPoint { may_store: false })
}

pub(super) fn georadiusbymember(data: &mut Data, args: Args) -> Outcome {
    search(data, args, Form::AroundMember { may_store: true })
}

pub(super) fn georadiusbymember_ro(data: &mut Data, args: Args) -> Outcome {
    search(data, args, Form::AroundMember { may_store: false })
}

pub(super) fn geosearch(data: &mut Data, args: Args) -> Outcome {
    search(data, args, Form::Search)
}

pub(super) fn geosearchstore(data: &mut Data, args: Args) -> Outcome {
    search(data, args, Form::Store)
}

#[derive(Clone, Copy)]
enum Centre {
    Point(Point),
    /// A member; `None` if there is no key, so that it is not looked for.
    Member(Option<Point>),
}

/// The shape, and the metres of the unit that distances are answered in.
#[derive(Clone, Copy)]
struct Area {
    shape: Shape,
    unit: f64,
}

impl Area {
    fn circle(radius: &[u8], word: &[u8]) -> Result<Area, Fault> {
        let radius = parse_exact(radius).ok_or("ERR need numeric radius")?;
        if radius < 0.0 {
            return Err("ERR radius cannot be negative".into());
        }
        let unit = unit(word)?;
        let shape = Shape::Circle { radius: radius * unit };
        Ok(Area { shape, unit })
    }

    fn rectangle(width: &[u8], height: &[u8], word: &[u8]) -> Result<Area, Fault> {
        let width = parse_exact(width).ok_or("ERR need numeric width")?;
        let height = parse_exact(height).ok_or("ERR need numeric height")?;
        if width < 0.0 || height < 0.0 {
            return Err("ERR height or width cannot be negative".into());
        }
        let unit = unit(word)?;
        let shape = Shape::Box {
            width: width * unit,
            height: height * unit,
        };
        Ok(Area { shape, unit })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    NearestFirst,
    FurthestFirst,
}

/// Where the result is stored.
#[derive(Clone, Copy)]
struct Target<'a> {
    key: &'a [u8],
    /// Distances become the scores.
    distances: bool,
}

#[derive(Default)]
struct Request<'a> {
    centre: Option<Centre>,
    area: Option<Area>,
    order: Option<Order>,
    count: Option<usize>,
    /// ANY: the first members that are found will do.
    any: bool,
    with_distance: bool,
    with_score: bool,
    with_point: bool,
    target: Option<Target<'a>>,
}

impl<'a> Request<'a> {
    fn parse(args: Args<'a>, form: Form, places: Option<&Sorted>) -> Result<Self, Fault> {
        let mut request = Request::default();
        let mut options = match form {
            Form::AroundPoint { .. } => {
                request.centre = Some(Centre::Point(point(args[2], args[3])?));
                request.area = Some(Area::circle(args[4], args[5])?);
                &args[6..]
            }
            Form::AroundMember { .. } => {
                // Without the key, Redis looks at the options alone.
                if places.is_some() {
                    request.centre = Some(member(places, args[2])?);
                    request.area = Some(Area::circle(args[3], args[4])?);
                }
                &args[5..]
            }
            Form::Search => &args[2..],
            Form::Store => {
                let (key, distances) = (args[1], false);
                request.target = Some(Target { key, distances });
                &args[3..]
            }
        };
        while !options.is_empty() {
            options = match request.general_option(options)? {
                Some(behind) => behind,
                None if form.is_search() => request.search_option(options, form, places)?,
                None => request.store_option(options, form)?,
            };
        }
        request.check(form, args[0])?;
        Ok(request)
    }

    /// Reads an option that all commands have, and returns what is behind it; `None` if the
    /// option is another one.
    fn general_option<'o>(&mut self, options: &'o [&'a [u8]]) -> Result<Option<&'o [&'a [u8]]>, Fault> {
        let [word, behind @ ..] = options else {
            return Ok(None);
        };
        match behind {
            _ if is(word, "withdist") => self.with_distance = true,
            _ if is(word, "withhash") => self.with_score = true,
            _ if is(word, "withcoord") => self.with_point = true,
            _ if is(word, "any") => self.any = true,
            _ if is(word, "asc") => self.order = Some(Order::NearestFirst),
            _ if is(word, "desc") => self.order = Some(Order::FurthestFirst),
            [count, behind @ ..] if is(word, "count") => {
                let count = usize::try_from(int(count)?).ok().filter(|count| *count > 0);
                self.count = Some(count.ok_or("ERR COUNT must be > 0")?);
                return Ok(Some(behind));
            }
            _ => return Ok(None),
        }
        Ok(Some(behind))
    }

    fn store_option<'o>(&mut self, options: &'o [&'a [u8]], form: Form) -> Result<&'o [&'a [u8]], Fault> {
        let [word, key, behind @ ..] = options else {
            return Err(SYNTAX.into());
        };
        let distances = is(word, "storedist");
        if !form.may_name_store() || !(distances || is(word, "store")) {
            return Err(SYNTAX.into());
        }
        self.target = Some(Target { key, distances });
        Ok(behind)
    }

    fn search_option<'o>(
        &mut self,
        options: &'o [&'a [u8]],
        form: Form,
        places: Option<&Sorted>,
    ) -> Result<&'o [&'a [u8]], Fault> {
        let [word, behind @ ..] = options else {
            return Err(SYNTAX.into());
        };
        let shape = self.area.map(|area| area.shape);
        match (behind, self.target.as_mut()) {
            (_, Some(target)) if form == Form::Store && is(word, "storedist") => {
                target.distances = true;
                Ok(behind)
            }
            ([name, behind @ ..], _) if is(word, "frommember") && !matches!(self.centre, Some(Centre::Point(_))) => {
                self.centre = Some(member(places, name)?);
                Ok(behind)
            }
            ([longitude, latitude, behind @ ..], _)
                if is(word, "fromlonlat") && !matches!(self.centre, Some(Centre::Member(_))) =>
            {
                self.centre = Some(Centre::Point(point(longitude, latitude)?));
                Ok(behind)
            }
            ([radius, unit, behind @ ..], _) if is(word, "byradius") && !matches!(shape, Some(Shape::Box { .. })) => {
                self.area = Some(Area::circle(radius, unit)?);
                Ok(behind)
            }
            ([width, height, unit, behind @ ..], _)
                if is(word, "bybox") && !matches!(shape, Some(Shape::Circle { .. })) =>
            {
                self.area = Some(Area::rectangle(width, height, unit)?);
                Ok(behind)
            }
            _ => Err(SYNTAX.into()),
        }
    }

    fn check(&self, form: Form, command: &[u8]) -> Result<(), Fault> {
        if self.target.is_some() && (self.with_distance || self.with_score || self.with_point) {
            let what = match form {
                Form::Store => "GEOSEARCHSTORE",
                _ => "STORE option in GEORADIUS",
            };
            return Err(Fault::error(format!(
                "ERR {what} is not compatible with WITHDIST, WITHHASH and WITHCOORD options"
            )));
        }
        let missing = match form.is_search() {
            true if self.centre.is_none() => Some("exactly one of FROMMEMBER or FROMLONLAT"),
            true if self.area.is_none() => Some("exactly one of BYRADIUS and BYBOX"),
            _ => None,
        };
        if let Some(missing) = missing {
            return Err(Fault::error(format!(
                "ERR {missing} can be specified for {}",
                text(command)
            )));
        }
        if self.any && self.count.is_none() {
            return Err("ERR the ANY argument requires COUNT argument".into());
        }
        Ok(())
    }
}

/// The position of a member that a search is around.
fn member(places: Option<&Sorted>, name: &[u8]) -> Result<Centre, Fault> {
    let Some(places) = places else {
        return Ok(Centre::Member(None));
    };
    let score = places.score(name).ok_or("ERR could not decode requested zset member")?;
    Ok(Centre::Member(Some(Point::of_score(score))))
}

/// A member that is inside the shape.
struct Found {
    member: Bytes,
    score: f64,
    /// Metres from the centre.
    distance: f64,
}

/// The members inside the shape, in the order of the cells that they are in.
fn find(data: &mut Data, places: &Sorted, centre: Point, shape: Shape, most: usize) -> Result<Vec<Found>, Fault> {
    let mut found = Vec::new();
    for range in shape.scores(centre) {
        let first = places.partition_point(|_, score| score < range.start);
        let end = places.partition_point(|_, score| score < range.end).max(first);
        data.transaction.works(COMPARED * (end - first))?;
        for (member, score) in places.iter(first..end) {
            if found.len() >= most {
                return Ok(found);
            }
            let distance = shape.distance_inside(centre, Point::of_score(score));
            found.extend(distance.map(|distance| Found {
                member: own(member),
                score,
                distance,
            }));
        }
    }
    Ok(found)
}

fn search(data: &mut Data, args: Args, form: Form) -> Outcome {
    let source = if form == Form::Store { args[2] } else { args[1] };
    let places = places(data, source)?;
    let request = Request::parse(args, form, places.as_ref())?;
    let (found, unit) = match (places, request.centre, request.area) {
        (Some(places), Some(Centre::Point(centre) | Centre::Member(Some(centre))), Some(Area { shape, unit })) => {
            (request.find(data, &places, centre, shape)?, unit)
        }
        // There is no key.
        _ => (Vec::new(), 1.0),
    };
    match request.target {
        Some(target) => store(data, target, &found, unit),
        None => Ok(Reply::Array(
            found.iter().map(|found| request.show(found, unit)).collect(),
        )),
    }
}

impl Request<'_> {
    /// The members that are asked for, in their order. Those at the same distance keep the order in
    /// which they were found; Redis may exchange them if COUNT leaves members out.
    fn find(&self, data: &mut Data, places: &Sorted, centre: Point, shape: Shape) -> Result<Vec<Found>, Fault> {
        let most = self.count.unwrap_or(usize::MAX);
        let at_once = if self.any { most } else { usize::MAX };
        let mut found = find(data, places, centre, shape, at_once)?;
        // A count of members needs an order; the nearest ones are meant.
        let implied = (self.count.is_some() && !self.any).then_some(Order::NearestFirst);
        match self.order.or(implied) {
            Some(Order::NearestFirst) => found.sort_by(|a, b| a.distance.total_cmp(&b.distance)),
            Some(Order::FurthestFirst) => found.sort_by(|a, b| b.distance.total_cmp(&a.distance)),
            None => {}
        }
        found.truncate(most);
        Ok(found)
    }

    fn show(&self, found: &Found, unit: f64) -> Reply {
        let member = Reply::Bulk(found.member.clone());
        if !(self.with_distance || self.with_score || self.with_point) {
            return member;
        }
        let mut shown = vec![member];
        shown.extend(self.with_distance.then(|| distance_reply(found.distance / unit)));
        shown.extend(self.with_score.then_some(Reply::Int(found.score as i64)));
        shown.extend(self.with_point.then(|| point_reply(Point::of_score(found.score))));
        Reply::Array(shown)
    }
}

/// Stores what was found; the reply is how many members that are.
fn store(data: &mut Data, target: Target, found: &[Found], unit: f64) -> Outcome {
    let score = |found: &Found| match target.distances {
        true => found.distance / unit,
        false => found.score,
    };
    let members = found.iter().map(|found| (found.member.clone(), score(found)));
    let mut result = Scores(members.collect());
    result.sort();
    data.store_result(target.key, result)?;
    Ok(Reply::Int(found.len() as i64))
}
