//! What goes wrong is named, ends within a deadline, and costs no number that was right.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;

use actors::clock::{Clock as _, RealClock};
use tests::faults;
use tests::runs::{EXPERIMENT, Going, Place, exits, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_playhouse-test");

const BOTH: &str = "
hosts: { far: { transport: tcp }, off: { transport: ipc } }
place: { seer: far, motion: off, student: off }
";

fn with_fault(mut command: Command, fault: &str) -> Command {
    command.env(faults::VARIABLE, fault).env("RUST_BACKTRACE", "0");
    command
}

/// A fault with a marker, so that it happens once.
fn once(place: &Place, (node, step, what): (&str, u64, &str)) -> String {
    let marker = place.path(&format!("{node}-{step}-{what}"));
    let marker = marker.display();
    format!(r#"{{"node":"{node}","step":{step},"what":"{what}","marker":"{marker}"}}"#)
}

/// Interrupts a run in a step; it makes a checkpoint after it.
fn stop_at(place: &Place, step: u64, command: Command) {
    let fault = once(place, ("student", step, "pause"));
    let marker = format!("student-{step}-pause");
    let going = Going::start(with_fault(command, &fault), &place.path("log"));
    until("the step", || place.path(&marker).exists().then_some(()));
    going.signal("INT");
    until("the signal", || going.text().contains("stopping after this step").then_some(()));
    place.write(&format!("{marker}.go"), "");
    let (status, text) = going.wait();
    assert_eq!(status.code(), Some(130), "{text}");
}

fn begin() -> (Place, String) {
    let place = Place::new(PROGRAM);
    exits(0, place.run("plain", ""));
    let numbers = place.metrics("plain");
    (place, numbers)
}

#[test]
fn a_node_that_panics_once_costs_nothing() {
    let (place, numbers) = begin();
    for (name, overlay) in [("here", ""), ("there", BOTH)] {
        for (node, step) in [("student", 4), ("judge", 7)] {
            let name = format!("{name}-{node}");
            let fault = once(&place, (node, step, "panic"));
            let _ = fs::remove_file(place.path(&format!("{node}-{step}-panic")));
            let text = exits(0, with_fault(place.run(&name, overlay), &fault));
            assert!(text.contains("the sky fell"), "{text}");
            assert_eq!(place.metrics(&name), numbers, "{name}");
        }
    }
}

#[test]
fn a_node_that_panics_every_time_ends_the_run_with_the_first_cause() {
    let place = Place::new(PROGRAM);
    let fault = r#"{"node":"student","step":3,"what":"panic"}"#;
    let mut command = with_fault(place.run("run", BOTH), fault);
    command.args(["--set", "run.max_restarts=2"]);
    let text = exits(1, command);
    let last = text.lines().last().expect("a line");
    assert!(last.starts_with("error: `student`: panicked: the sky fell at step 3"), "{text}");
    assert!(last.ends_with("(after 2 restarts in 300 s)"), "{text}");
    assert_eq!(text.matches("going back to the last checkpoint").count(), 2, "{text}");
    place.assert_alone();
    // The run is as it was at its last checkpoint, and goes on once the fault is gone.
    exits(0, place.resume("run"));
    exits(0, place.run("plain", ""));
    assert_eq!(place.metrics("run"), place.metrics("plain"));
}

#[test]
fn no_restarts_and_a_short_window_are_honoured() {
    let place = Place::new(PROGRAM);
    let fault = r#"{"node":"judge","step":7,"what":"panic"}"#;
    let mut command = with_fault(place.run("none", ""), fault);
    command.args(["--set", "run.max_restarts=0"]);
    let text = exits(1, command);
    assert_eq!(text.matches("going back").count(), 0, "{text}");
}

#[test]
fn a_node_that_hangs_is_named_and_made_again() {
    let (place, numbers) = begin();
    for (name, overlay) in [("here", ""), ("there", BOTH)] {
        let fault = once(&place, ("student", 4, "hang"));
        let _ = fs::remove_file(place.path("student-4-hang"));
        let mut command = with_fault(place.run(name, overlay), &fault);
        command.args(["--set", "run.deadline=2"]);
        let text = exits(0, command);
        assert!(text.contains("no progress for 2 s; waiting for"), "{text}");
        assert!(text.contains("`student`"), "{text}");
        assert_eq!(place.metrics(name), numbers, "{name}");
        place.assert_alone();
    }
    let fault = r#"{"node":"mask","step":2,"what":"hang"}"#;
    let mut command = with_fault(place.run("always", ""), fault);
    command.args(["--set", "run.deadline=1", "--set", "run.max_restarts=1"]);
    let text = exits(1, command);
    assert!(text.lines().last().expect("a line").contains("`mask`"), "{text}");
}

#[test]
fn a_loss_that_is_nan_ends_the_run_with_its_reason() {
    let place = Place::new(PROGRAM);
    place.write("stop.yaml", "observers: [stop_on_nan, { kind: checkpoint, every: 2, keep: 3 }]");
    // The last step of the run is no exception.
    for (name, node, step) in [("first", "align", 3), ("last", "judge", 13)] {
        let fault = format!(r#"{{"node":"{node}","step":{step},"what":"nan"}}"#);
        let mut command = with_fault(place.run(name, ""), &fault);
        command.args(["--with", "stop.yaml"]);
        let text = exits(1, command);
        let reason = format!("`{node}.loss` is NaN at step {step}");
        assert!(text.contains(&reason), "{text}");
        let summary = fs::read_to_string(place.path(name).join("summary.json")).expect("one");
        assert!(summary.contains(r#""outcome": "failed""#), "{summary}");
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_names_the_path_and_loses_none() {
    let place = Place::new(PROGRAM);
    // Checkpoints at the end of stages alone: a paused node would not write its part of one.
    let rarely = EXPERIMENT.replace("every: 2", "every: 100");
    place.write("experiment.yaml", &rarely);
    let marker = once(&place, ("student", 7, "pause"));
    let command = with_fault(place.run("run", ""), &marker);
    let going = Going::start(command, &place.path("log"));
    until("step 7", || place.path("student-7-pause").exists().then_some(()));
    place.settled("run");
    let before: Vec<u64> = place.checkpoints("run").iter().map(|(step, _)| *step).collect();
    // A file where the next checkpoint's folder must go: refused for root, too.
    let (real, away) = (place.path("run").join("checkpoints"), place.path("away"));
    fs::rename(&real, &away).expect("moved");
    fs::write(&real, "not a folder").expect("written");
    place.write("student-7-pause.go", "");
    let (status, text) = going.wait();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("error: cannot prepare ") && text.contains("run/checkpoints"), "{text}");
    fs::remove_file(&real).expect("removed");
    fs::rename(&away, &real).expect("moved back");
    let after: Vec<u64> = place.checkpoints("run").iter().map(|(step, _)| *step).collect();
    assert_eq!(before, after);
    exits(0, place.resume("run"));
    exits(0, place.run("plain", ""));
    assert_eq!(place.metrics("run"), place.metrics("plain"));
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken() {
    let (place, numbers) = begin();
    stop_at(&place, 5, place.run("run", ""));
    stop_at(&place, 9, place.resume("run"));
    let damage = |path: &std::path::Path| {
        let file = path.join("student.safetensors");
        let mut bytes = fs::read(&file).expect("a part");
        *bytes.last_mut().expect("bytes") ^= 1;
        fs::write(&file, bytes).expect("written");
    };
    let found = place.checkpoints("run");
    damage(&found.last().expect("one").1);
    let text = exits(0, place.resume("run"));
    assert!(text.contains("student.safetensors: has another checksum"), "{text}");
    assert!(text.contains("going back to the one before it"), "{text}");
    assert_eq!(place.metrics("run"), numbers);
    // When all of them are damaged the run does not begin anew by itself.
    stop_at(&place, 7, place.run("bad", ""));
    for (_, path) in place.checkpoints("bad") {
        damage(&path);
    }
    let text = exits(1, place.resume("bad"));
    assert!(text.contains("there is no older checkpoint"), "{text}");
}

/// Runs until step 9 with checkpoints at 6, and at 5 or 9; gives the newest one's bytes of numbers.
fn stopped(place: &Place, name: &str) -> u64 {
    stop_at(place, 5, place.run(name, ""));
    stop_at(place, 8, place.resume(name));
    let folder = place.path(name).join("checkpoints");
    let found = schemas::checkpoint::list(&folder);
    assert!(found.len() > 1, "{found:?}");
    found.last().expect("one").0.metrics_bytes
}

/// Numbers that a checkpoint counts on are gone: steps are done again rather than left out.
#[test]
fn numbers_that_are_gone_are_computed_again_or_the_run_is_refused() {
    let (place, numbers) = begin();
    let needed = stopped(&place, "run");
    let file = place.path("run").join("metrics.csv");
    let cut = |bytes: u64| {
        let file = fs::OpenOptions::new().write(true).open(&file).expect("the record");
        file.set_len(bytes).expect("cut");
    };
    cut(needed - 7);
    let text = exits(0, place.resume("run"));
    assert!(text.contains("going back to an older checkpoint"), "{text}");
    assert_eq!(place.metrics("run"), numbers);
    // A run that was complete is not, without its last numbers.
    cut(numbers.len() as u64 - 7);
    exits(0, place.resume("run"));
    assert_eq!(place.metrics("run"), numbers);
    // Without any it is refused, and nothing is changed.
    fs::remove_file(&file).expect("removed");
    let text = exits(2, place.resume("run"));
    assert!(text.contains("metrics.csv: is missing, "), "{text}");
    assert!(text.contains(&format!("-00000014 needs {} bytes", numbers.len())), "{text}");
    assert!(text.contains("put the file back from a copy, or begin a new run"), "{text}");
    assert!(!file.exists());
    fs::write(&file, format!("{numbers}more")).expect("written");
    assert!(exits(0, place.resume("run")).contains("this run is complete"));
}

#[test]
fn a_changed_manifest_is_named_and_the_checkpoint_before_it_is_taken() {
    let (place, numbers) = begin();
    stopped(&place, "run");
    let change = |path: &std::path::Path| {
        let file = path.join("manifest.json");
        let text = fs::read_to_string(&file).expect("a manifest");
        fs::write(&file, text.replace("\"step\": ", "\"step\": 1")).expect("written");
    };
    change(&place.checkpoints("run").last().expect("one").1);
    let text = exits(0, place.resume("run"));
    assert!(text.contains("manifest.json: has another checksum"), "{text}");
    assert_eq!(place.metrics("run"), numbers);
    // When all of them are changed the run does not begin anew by itself.
    for (_, path) in place.checkpoints("run") {
        change(&path);
    }
    let text = exits(2, place.resume("run"));
    assert!(text.contains("manifest.json: has another checksum"), "{text}");
    assert!(text.contains("there is no older checkpoint"), "{text}");
    assert_eq!(place.metrics("run"), numbers);
}

#[test]
fn a_run_that_waits_for_an_agent_says_so_names_a_wrong_key_and_ends_when_it_is_interrupted() {
    let place = Place::new(PROGRAM);
    exits(0, place.command(&["keys", "keys", "far", "other"]));
    let overlay = "
hosts: { far: { transport: tcp, listen: \"tcp://127.0.0.1:0\" } }
place: { seer: far }
run: { keys: keys }
";
    let going = Going::start(place.run("run", overlay), &place.path("log"));
    let command = until("the notice", || {
        let text = going.text();
        let (_, rest) =
            text.split_once("waiting for the agent of host `far` at tcp://127.0.0.1:")?;
        let (_, rest) = rest.split_once("start it with `playhouse ")?;
        Some(rest.split_once('`')?.0.to_owned())
    });
    // What it says works, but for the name.
    assert!(command.ends_with(" --name far"), "{command}");
    let wrong = command.replace(" --name far", " --name other");
    let arguments: Vec<&str> = wrong.split(' ').collect();
    exits(1, place.command(&arguments));
    let text = going.text();
    assert!(text.contains("the key of `other` was refused: this run expects `far`"), "{text}");
    going.signal("INT");
    let clock = RealClock::start();
    let start = clock.now();
    let (status, text) = going.wait();
    assert_eq!(status.code(), Some(130), "{text}");
    assert!(clock.now().since(start) < 10.0, "it ends at once");
    assert!(text.contains("interrupted before step 0"), "{text}");
    place.assert_alone();
    // Resumed, with the agent that it asks for, it runs.
    let going = Going::start(place.resume("run"), &place.path("log"));
    let command = until("the notice", || {
        let text = going.text();
        let (_, rest) = text.split_once("start it with `playhouse ")?;
        Some(rest.split_once('`')?.0.to_owned())
    });
    let arguments: Vec<&str> = command.split(' ').collect();
    exits(0, place.command(&arguments));
    let (status, text) = going.wait();
    assert_eq!(status.code(), Some(0), "{text}");
}

#[test]
fn resume_refuses_another_graph_and_knows_a_finished_run() {
    let (place, _) = begin();
    assert!(exits(0, place.resume("plain")).contains("this run is complete: 14 steps"));
    let refused = exits(2, place.run("plain", ""));
    assert!(refused.contains("holds a run already"), "{refused}");
    place.write("other.yaml", "graph: { clips: { batch: 4 } }");
    let mut command = place.resume("plain");
    command.args(["--with", "other.yaml"]);
    let refused = exits(2, command);
    assert!(refused.contains("differs from the one that the run began with"), "{refused}");
    let refused = exits(2, place.resume("nothing"));
    assert!(refused.contains("not a run directory"), "{refused}");
}

#[test]
fn two_processes_do_not_work_on_one_run() {
    let place = Place::new(PROGRAM);
    let fault = once(&place, ("student", 3, "pause"));
    let going = Going::start(with_fault(place.run("run", ""), &fault), &place.path("log"));
    until("step 3", || place.path("student-3-pause").exists().then_some(()));
    let refused = exits(2, place.resume("run"));
    assert!(refused.contains("another process works on this run"), "{refused}");
    place.write("student-3-pause.go", "");
    let (status, text) = going.wait();
    assert_eq!(status.code(), Some(0), "{text}");
}

/// Ports that this machine listens at on the loopback address.
fn ports() -> Vec<u16> {
    let table = fs::read_to_string("/proc/net/tcp").expect("the table");
    let listening = table.lines().skip(1).filter(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&"0A") && fields[1].starts_with("0100007F:")
    });
    let port = |line: &str| {
        let address = line.split_whitespace().nth(1)?;
        u16::from_str_radix(address.rsplit(':').next()?, 16).ok()
    };
    listening.filter_map(port).collect()
}

/// Bytes without meaning, the same every time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn noise_at_every_socket_changes_nothing() {
    let (place, numbers) = begin();
    let before = ports();
    let fault = once(&place, ("student", 4, "pause"));
    let going = Going::start(with_fault(place.run("run", BOTH), &fault), &place.path("log"));
    until("step 4", || place.path("student-4-pause").exists().then_some(()));
    let mut sockets = Vec::new();
    for folder in fs::read_dir(place.path("")).expect("the folder").flatten() {
        if folder.file_name().to_string_lossy().starts_with("playhouse-") {
            let files = fs::read_dir(folder.path()).expect("sockets").flatten();
            sockets.extend(files.map(|file| file.path()));
        }
    }
    assert!(sockets.iter().any(|path| path.ends_with("supervisor.sock")), "{sockets:?}");
    let tcp: Vec<u16> = ports().into_iter().filter(|port| !before.contains(port)).collect();
    assert!(tcp.len() >= 2, "the supervisor and an agent listen: {tcp:?}");
    // A ZMTP greeting first, so that some of it gets further.
    let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
    greeting.extend(b"NULL");
    greeting.resize(64, 0);
    for round in 0..20 {
        let mut bytes = if round % 2 == 0 { greeting.clone() } else { Vec::new() };
        bytes.extend(noise(round, 50 << (round % 10)));
        for path in &sockets {
            if let Ok(mut stream) = UnixStream::connect(path) {
                let _ = stream.write_all(&bytes); // it may be refused half-way
            }
        }
        for port in &tcp {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", *port)) {
                let _ = stream.write_all(&bytes);
            }
        }
    }
    place.write("student-4-pause.go", "");
    let (status, text) = going.wait();
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(!text.contains("going back"), "{text}");
    assert_eq!(place.metrics("run"), numbers);
    place.assert_alone();
}
