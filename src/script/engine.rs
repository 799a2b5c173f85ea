//! The states of a node, its known scripts, and which scripts are running.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::control::{Control, Stop};
use super::functions::{Index, Library, Refused};
use super::state::{Ended, Host, State};
use super::texts::{Script, Scripts};

/// Most states that wait for work. More are made when more scripts run at one time.
const MOST_IDLE: usize = 8;
/// A state that takes more memory after its garbage was collected is not used again.
const MOST_KEPT: usize = 8 << 20;

/// What a library of another node may take to be loaded.
const LOADING: Duration = Duration::from_secs(5);
/// After this time, a library that took too long or too much is tried again.
const RETRY: Duration = Duration::from_secs(60);
/// Bytes of the libraries that are kept because they may soon be added.
const MOST_LOADED: usize = 16 << 20;

/// What to run.
pub struct Job<'j> {
    pub script: &'j Script,
    pub keys: &'j [&'j [u8]],
    pub args: &'j [&'j [u8]],
    /// How long it may run.
    pub time: Option<Duration>,
}

/// Which function to call.
pub struct Call<'j> {
    pub library: &'j Library,
    pub function: &'j Bytes,
    pub keys: &'j [&'j [u8]],
    pub args: &'j [&'j [u8]],
    /// How long it may run.
    pub time: Option<Duration>,
    /// The command, as it is reported.
    pub command: Vec<Bytes>,
}

/// What is running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Script,
    Function { name: Bytes, command: Vec<Bytes> },
}

/// What became of an attempt to stop what runs for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    Killed,
    /// Only what is of the other kind runs.
    Other,
    Nothing,
}

/// The libraries that were asked for last.
#[derive(Clone, Default)]
struct Known {
    texts: Arc<BTreeMap<Bytes, Bytes>>,
    index: Arc<Index>,
    /// When a library that is left out is tried again.
    retry: Option<Instant>,
}

/// A library that is left out.
struct LeftOut {
    text: Bytes,
    /// When it is tried again. `None`: never, its text is wrong.
    retry: Option<Instant>,
}

/// Libraries by their texts.
#[derive(Default)]
struct Loaded {
    libraries: HashMap<Bytes, Arc<Library>>,
    bytes: usize,
}

impl Loaded {
    fn keep(&mut self, library: &Arc<Library>) {
        if self.bytes + library.bytes() > MOST_LOADED {
            *self = Loaded::default();
        }
        if self.libraries.insert(library.text.clone(), library.clone()).is_none() {
            self.bytes += library.bytes();
        }
    }
}

pub struct Engine {
    pub scripts: Scripts,
    known: Mutex<Known>,
    /// Libraries that are left out, which is reported once; by their names.
    left_out: Mutex<HashMap<Bytes, LeftOut>>,
    loaded: Mutex<Loaded>,
    redis_version: &'static str,
    idle: Mutex<Idle>,
    /// Of scripts that are running.
    running: Mutex<Vec<(Arc<Control>, Kind)>>,
}

#[derive(Default)]
struct Idle {
    states: Vec<State>,
    /// States of an earlier generation may know scripts that were forgotten since.
    generation: u64,
}

/// A script that is running, until this is dropped.
struct Running<'e> {
    engine: &'e Engine,
    control: Arc<Control>,
}

impl<'e> Running<'e> {
    fn new(engine: &'e Engine, control: Arc<Control>, kind: Kind) -> Self {
        engine.running.lock().push((control.clone(), kind));
        Running { engine, control }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut running = self.engine.running.lock();
        running.retain(|(running, _)| !Arc::ptr_eq(running, &self.control));
    }
}

/// The earlier of two times.
fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

impl Engine {
    pub fn new(redis_version: &'static str) -> Self {
        Engine {
            scripts: Scripts::default(),
            known: Mutex::default(),
            left_out: Mutex::default(),
            loaded: Mutex::default(),
            redis_version,
            idle: Mutex::default(),
            running: Mutex::default(),
        }
    }

    /// Runs a script to its end. The error is a reply.
    pub fn run(&self, host: &mut dyn Host, job: &Job<'_>) -> Result<Ended, Bytes> {
        let (mut state, generation) = self.state()?;
        let control = state.control().clone();
        control.begin(job.time);
        let running = Running::new(self, control, Kind::Script);
        let ended = state.run(host, job.script, job.keys, job.args);
        drop(running);
        self.put_back(state, generation);
        Ok(ended)
    }

    /// Compiles a script. The error is a reply.
    pub fn compile(&self, script: &Script) -> Result<(), Bytes> {
        let (mut state, generation) = self.state()?;
        let compiled = state.compile(script).map(|_| ());
        self.put_back(state, generation);
        compiled
    }

    /// Calls a function to its end. The error is a reply.
    pub fn call(&self, host: &mut dyn Host, call: &Call<'_>) -> Result<Ended, Bytes> {
        let (mut state, generation) = self.state()?;
        let control = state.control().clone();
        control.begin(call.time);
        let kind = Kind::Function {
            name: call.function.clone(),
            command: call.command.clone(),
        };
        let running = Running::new(self, control, kind);
        let ended = state.call_function(host, (call.library, call.function), call.keys, call.args);
        drop(running);
        self.put_back(state, generation);
        Ok(ended)
    }

    /// Loads a library, within this time, or takes it as it was loaded before.
    pub fn load(&self, host: &mut dyn Host, text: &Bytes, time: Duration) -> Result<Arc<Library>, Refused> {
        if let Some(library) = self.loaded.lock().libraries.get(text) {
            return Ok(library.clone());
        }
        let (mut state, generation) = self.state().map_err(Refused::Unprepared)?;
        state.control().begin(Some(time));
        let loaded = state.load_library(host, text);
        self.put_back(state, generation);
        if let Ok(library) = &loaded {
            self.loaded.lock().keep(library);
        }
        loaded
    }

    /// The libraries with these texts. One that cannot be loaded, as another node or producer may
    /// have written it, is left out and reported. `None`: it takes longer than `short`. If that is
    /// `None`, it takes as long as a library may take.
    pub fn index(
        &self,
        host: &mut dyn Host,
        texts: &Arc<BTreeMap<Bytes, Bytes>>,
        short: Option<Duration>,
    ) -> Option<Arc<Index>> {
        let known = self.known.lock().clone();
        let is_due = |retry: Option<Instant>| retry.is_some_and(|retry| retry <= Instant::now());
        if Arc::ptr_eq(&known.texts, texts) && !is_due(known.retry) {
            return Some(known.index);
        }
        let (mut index, mut retry) = (Index::default(), None);
        for (name, text) in texts.iter() {
            let library = known.index.libraries.get(name).filter(|library| library.text == *text);
            // It may have been loaded since, by a command.
            let is_loaded = library.is_some() || self.loaded.lock().libraries.contains_key(text);
            let left_out = self.retry_of(name, text).filter(|retry| !is_loaded && !is_due(*retry));
            if let Some(at) = left_out {
                retry = earliest(retry, at);
                continue;
            }
            let loaded = match library {
                Some(library) => Ok(library.clone()),
                None => self.load(host, text, short.unwrap_or(LOADING)),
            };
            let later = Some(Instant::now() + RETRY);
            let (why, again) = match loaded {
                Ok(library) if library.name != *name => ("it has another name".to_owned(), None),
                Ok(library) => match index.add(&library) {
                    Ok(()) => {
                        self.left_out.lock().remove(name);
                        continue;
                    }
                    // The engine has it. It is tried again whenever the libraries change.
                    Err(function) => {
                        let why = format!("another library has its function {}", function.escape_ascii());
                        (why, later)
                    }
                },
                Err(Refused::Stopped(Stop::Late)) if short.is_some() => return None,
                Err(Refused::Stopped(stop)) => (format!("it was stopped: {stop:?}"), later),
                Err(Refused::Unprepared(error)) => (error.escape_ascii().to_string(), later),
                Err(Refused::Error(error)) => (error.escape_ascii().to_string(), None),
            };
            retry = earliest(retry, again);
            self.leave_out(name, text, again, &why);
        }
        self.left_out.lock().retain(|name, _| texts.contains_key(name));
        let index = Arc::new(index);
        *self.known.lock() = Known {
            texts: texts.clone(),
            index: index.clone(),
            retry,
        };
        Some(index)
    }

    /// When a library is tried again. `None`: it is not left out.
    fn retry_of(&self, name: &[u8], text: &Bytes) -> Option<Option<Instant>> {
        let left_out = self.left_out.lock();
        let of_this = left_out.get(name).filter(|left_out| left_out.text == *text);
        of_this.map(|left_out| left_out.retry)
    }

    fn leave_out(&self, name: &Bytes, text: &Bytes, retry: Option<Instant>, why: &str) {
        let text = text.clone();
        let before = self.left_out.lock().insert(
            name.clone(),
            LeftOut {
                text: text.clone(),
                retry,
            },
        );
        if before.is_none_or(|before| before.text != text) {
            tracing::warn!(library = %name.escape_ascii(), why, "a library of functions is left out");
        }
    }

    /// Stops the scripts, or the functions, that have been running for longer than this.
    pub fn kill(&self, functions: bool, longer_than: Duration) -> Kill {
        let running = self.running.lock();
        let mut kill = Kill::Nothing;
        for (control, kind) in running.iter().filter(|(control, _)| control.runs_for() > longer_than) {
            if functions == matches!(kind, Kind::Function { .. }) {
                control.stop(Stop::Killed);
                kill = Kill::Killed;
            } else if kill == Kill::Nothing {
                kill = Kill::Other;
            }
        }
        kill
    }

    /// What has been running for the longest time, if that is longer than this; and how long.
    pub fn longest(&self, longer_than: Duration) -> Option<(Kind, Duration)> {
        let running = self.running.lock();
        let times = running.iter().map(|(control, kind)| (kind, control.runs_for()));
        let longest = times
            .filter(|(_, time)| *time > longer_than)
            .max_by_key(|(_, time)| *time);
        longest.map(|(kind, time)| (kind.clone(), time))
    }

    /// True if a script has been running for longer than this.
    pub fn is_busy(&self, longer_than: Duration) -> bool {
        self.running
            .lock()
            .iter()
            .any(|(control, _)| control.runs_for() > longer_than)
    }

    /// Forgets all scripts.
    pub fn flush(&self) {
        self.scripts.clear();
        let mut idle = self.idle.lock();
        idle.generation += 1;
        let states = std::mem::take(&mut idle.states);
        drop(idle);
        drop(states);
    }

    /// Bytes of the largest state that waits for work.
    pub fn memory(&self) -> usize {
        self.idle.lock().states.iter().map(State::memory).max().unwrap_or(0)
    }

    fn state(&self) -> Result<(State, u64), Bytes> {
        let (state, generation) = {
            let mut idle = self.idle.lock();
            (idle.states.pop(), idle.generation)
        };
        let state = match state {
            Some(state) => state,
            None => State::new(self.redis_version)
                .map_err(|error| Bytes::from(format!("ERR Lua cannot be prepared: {error}")))?,
        };
        Ok((state, generation))
    }

    fn put_back(&self, state: State, generation: u64) {
        if state.memory() > MOST_KEPT && (state.collect().is_err() || state.memory() > MOST_KEPT) {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.generation == generation && idle.states.len() < MOST_IDLE {
            idle.states.push(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::Reply;
    use crate::script::{Level, sha1_hex};

    struct Nothing;

    impl Host for Nothing {
        fn call(&mut self, _: &[&[u8]]) -> Option<Reply> {
            None
        }
        fn is_allowed(&mut self, _: &[&[u8]]) -> Option<bool> {
            None
        }
        fn log(&mut self, _: Level, _: &[u8]) {}
    }

    /// The reply of a script, in the one state of the engine.
    fn run(engine: &Engine, code: &str) -> String {
        let script = Script {
            sha: sha1_hex(code.as_bytes()),
            code: Bytes::copy_from_slice(code.as_bytes()),
            flags: 0,
        };
        let job = Job {
            script: &script,
            keys: &[],
            args: &[],
            time: None,
        };
        match engine.run(&mut Nothing, &job) {
            Ok(Ended::Reply { reply, .. }) => format!("{reply:?}"),
            _ => panic!("{code}: it was stopped"),
        }
    }

    #[test]
    fn scripts_cannot_change_what_others_find() {
        let engine = Engine::new("7.2.0");
        for attack in [
            "getmetatable('').__index.len = function() return 42 end",
            "getmetatable('').__index = {}",
            "rawset(getmetatable('').__index, 'len', 1)",
            "rawset(rawget(getmetatable(''), '__index'), 'len', 1)",
            "setmetatable(getmetatable('').__index, nil)",
            "string.len = function() return 42 end",
        ] {
            let reply = run(&engine, attack);
            assert!(
                reply.contains("Attempt to modify a readonly table"),
                "{attack}: {reply}"
            );
        }
        run(&engine, "table.insert(getmetatable('').__index, function() end)");
        assert_eq!(run(&engine, "return ('abc'):len()"), format!("{:?}", Reply::Int(3)));
        assert_eq!(
            run(&engine, "return #getmetatable('').__index"),
            format!("{:?}", Reply::Int(0))
        );
    }

    #[test]
    fn no_script_loads_bytecode() {
        let engine = Engine::new("7.2.0");
        let hide = "pcall(function() getmetatable('').__index.byte = function() return 1 end end) ";
        for load in [
            "local code = string.dump(function() return 1 end) ",
            "local code = string.char(27) .. 'Lua' ",
        ] {
            for by in [
                "loadstring(code)",
                "load(function() local c = code code = nil return c end)",
            ] {
                let reply = run(
                    &engine,
                    &format!("{hide}{load}local f, e = {by} return tostring(f) .. e"),
                );
                assert!(reply.contains("nil[string"), "{reply}");
            }
        }
    }

    fn texts(libraries: &[(&'static str, &'static str)]) -> Arc<BTreeMap<Bytes, Bytes>> {
        let text = |(name, code): &(&'static str, &str)| {
            (Bytes::from(*name), Bytes::from(format!("#!lua name={name}\n{code}")))
        };
        Arc::new(libraries.iter().map(text).collect())
    }

    fn names(engine: &Engine, of: &Arc<BTreeMap<Bytes, Bytes>>) -> Vec<Bytes> {
        let index = engine.index(&mut Nothing, of, None).expect("there is time");
        index.libraries.keys().cloned().collect()
    }

    #[test]
    fn what_is_left_out_comes_back() {
        const F: &str = "redis.register_function('f', function() return 1 end)";
        let engine = Engine::new("7.2.0");
        assert_eq!(names(&engine, &texts(&[("a", F), ("b", F), ("c", "no Lua")])), ["a"]);
        assert_eq!(names(&engine, &texts(&[("b", F), ("c", "no Lua")])), ["b"]);
        // It took too long. Then a command has loaded it.
        let of = texts(&[("slow", F)]);
        let text = of.get(&b"slow"[..]).expect("it is there");
        let later = Instant::now() + Duration::from_secs(3600);
        engine.leave_out(&Bytes::from("slow"), text, Some(later), "it is slow");
        assert!(names(&engine, &of).is_empty());
        assert!(engine.load(&mut Nothing, text, LOADING).is_ok());
        assert_eq!(names(&engine, &Arc::new(BTreeMap::clone(&of))), ["slow"]);
        // The time has come.
        let of = texts(&[("other", F)]);
        let text = of.get(&b"other"[..]).expect("it is there");
        engine.leave_out(&Bytes::from("other"), text, Some(Instant::now()), "it was slow");
        assert_eq!(names(&engine, &of), ["other"]);
    }

    #[test]
    fn descriptions_take_memory() {
        let engine = Engine::new("7.2.0");
        let code = "redis.register_function{function_name='f', callback=function() end, description=('x'):rep(%)}";
        for (bytes, is_loaded) in [("1000", true), ("2e6", false)] {
            let text = Bytes::from(format!("#!lua name=a\n{}", code.replace('%', bytes)));
            let loaded = engine.load(&mut Nothing, &text, LOADING);
            assert_eq!(loaded.is_ok(), is_loaded, "{bytes}");
            if let Ok(library) = loaded {
                assert!(library.bytes() > text.len() + 1000);
            }
        }
    }
}
