//! One experiment, many ways to run it, one series of numbers: whatever the placement, the
//! prefetch, the threads, and wherever it was interrupted or killed.

use std::process::Command;

use tests::faults;
use tests::runs::{Going, Place, assert_begins, exits, signal, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_playhouse-test");

const IPC: &str = "
hosts: { far: { transport: ipc } }
place: { seer: far, motion: far, mask: far }
";

/// The gradient path, the fan-out and the moving average all cross processes.
const TCP: &str = "
hosts: { far: { transport: tcp }, off: { transport: tcp, threads: 1 } }
place: { seer: far, motion: far, average: far, student: off, mask: off }
";

const MIXED: &str = "
hosts: { far: { transport: tcp }, off: { transport: ipc }, own: { transport: ipc, threads: 3 } }
place: { clips: far, motion: off, average: off, student: own, self: far, head: own }
";

/// A place and the numbers of an undisturbed run.
fn begin() -> (Place, String) {
    let place = Place::new(PROGRAM);
    exits(0, place.run("plain", ""));
    let numbers = place.metrics("plain");
    assert_eq!(place.steps("plain"), 14);
    (place, numbers)
}

/// A run that waits at a step of a node until it is released.
struct Paused<'a> {
    place: &'a Place,
    going: Going,
    marker: String,
}

impl<'a> Paused<'a> {
    fn at(place: &'a Place, (node, step): (&str, u64), mut command: Command) -> Self {
        let marker = format!("{node}-{step}");
        for name in [marker.clone(), format!("{marker}.go")] {
            let _ = std::fs::remove_file(place.path(&name)); // of another run in this place
        }
        let path = place.path(&marker).display().to_string();
        let fault =
            format!(r#"{{"node":"{node}","step":{step},"what":"pause","marker":"{path}"}}"#);
        command.env(faults::VARIABLE, fault);
        let going = Going::start(command, &place.path("log"));
        let paused = Self { place, going, marker };
        until("the step to begin", || place.path(&paused.marker).exists().then_some(()));
        paused
    }

    /// Waits until the step before is over at all nodes: one may begin the next one earlier.
    fn after(&self, out: &str, step: u64) {
        until("the step before to be over", || (self.place.steps(out) >= step).then_some(()));
    }

    fn release(self) -> Going {
        self.place.write(&format!("{}.go", self.marker), "");
        self.going
    }
}

#[test]
fn placement_prefetch_and_threads_do_not_change_the_numbers() {
    let (place, numbers) = begin();
    for (name, overlay) in [("ipc", IPC), ("tcp", TCP), ("mixed", MIXED)] {
        exits(0, place.run(name, overlay));
        assert_eq!(place.metrics(name), numbers, "{name}");
        place.assert_alone();
    }
    for prefetch in ["0", "3"] {
        let name = format!("prefetch-{prefetch}");
        let mut command = place.run(&name, IPC);
        command.args(["--set", &format!("run.prefetch={prefetch}")]);
        exits(0, command);
        assert_eq!(place.metrics(&name), numbers, "{name}");
    }
    for threads in ["1", "2", "5"] {
        let name = format!("threads-{threads}");
        let mut command = place.run(&name, "");
        command.env("RAYON_NUM_THREADS", threads);
        exits(0, command);
        assert_eq!(place.metrics(&name), numbers, "{name}");
    }
}

#[test]
fn interrupted_twice_and_resumed_twice() {
    let (place, numbers) = begin();
    for (name, overlay) in [("one", ""), ("two", IPC)] {
        // In the first stage, between two checkpoints; then in the second, by another signal.
        let mut command = place.run(name, overlay);
        for (step, sign) in [(3, "INT"), (8, "TERM")] {
            let paused = Paused::at(&place, ("student", step), command);
            paused.after(name, step);
            paused.going.signal(sign);
            until("the signal to be seen", || {
                paused.going.text().contains("stopping after this step").then_some(())
            });
            let (status, text) = paused.release().wait();
            assert_eq!(status.code(), Some(130), "{text}");
            assert!(text.contains(&format!("interrupted before step {}", step + 1)), "{text}");
            assert_eq!(place.checkpoints(name).last().expect("one").0, step + 1);
            assert_begins(&numbers, &place.metrics(name));
            place.assert_alone();
            command = place.resume(name);
        }
        exits(0, command);
        assert_eq!(place.metrics(name), numbers, "{name}");
        place.assert_alone();
    }
}

#[test]
fn a_run_that_is_killed_resumes_from_its_last_checkpoint() {
    let (place, numbers) = begin();
    for (name, overlay) in [("one", ""), ("two", TCP)] {
        let mut command = place.run(name, overlay);
        for step in [5, 9] {
            let paused = Paused::at(&place, ("judge", step.max(6)), command);
            until("a checkpoint", || (!place.checkpoints(name).is_empty()).then_some(()));
            let agents = place.agents();
            assert_eq!(agents.len(), if overlay.is_empty() { 0 } else { 2 });
            paused.going.signal("KILL");
            paused.going.wait();
            place.assert_alone();
            command = place.resume(name);
        }
        exits(0, command);
        assert_eq!(place.metrics(name), numbers, "{name}");
        place.assert_alone();
    }
}

#[test]
fn a_run_that_is_killed_before_its_first_checkpoint_begins_again() {
    let (place, numbers) = begin();
    let paused = Paused::at(&place, ("student", 1), place.run("early", IPC));
    paused.going.signal("KILL");
    paused.going.wait();
    place.assert_alone();
    assert!(place.checkpoints("early").is_empty());
    exits(0, place.resume("early"));
    assert_eq!(place.metrics("early"), numbers);
}

#[test]
fn a_killed_agent_is_made_again_and_the_run_goes_on() {
    let (place, numbers) = begin();
    for (name, overlay) in [("ipc", IPC), ("tcp", TCP)] {
        let paused = Paused::at(&place, ("align", 4), place.run(name, overlay));
        let victims = place.agents();
        signal(*victims.first().expect("an agent"), "KILL");
        let (status, text) = paused.release().wait();
        assert_eq!(status.code(), Some(0), "{text}");
        assert!(text.contains("going back to the last checkpoint"), "{text}");
        assert!(text.contains("the agent on `"), "the cause is the agent: {text}");
        assert_eq!(place.metrics(name), numbers, "{name}");
        place.assert_alone();
    }
}

#[test]
fn a_stopped_agent_is_found_and_replaced() {
    let (place, numbers) = begin();
    let paused = Paused::at(&place, ("align", 4), place.run("silent", TCP));
    let victims = place.agents();
    signal(*victims.first().expect("an agent"), "STOP");
    let (status, text) = paused.release().wait();
    assert_eq!(status.code(), Some(0), "{text}");
    assert_eq!(place.metrics("silent"), numbers, "{text}");
    place.assert_alone();
}

#[test]
fn resuming_at_the_boundary_of_a_stage_equals_not_having_stopped() {
    let (place, numbers) = begin();
    // The student trains on both sides; its moments begin anew on the other side.
    for (name, node, step) in [("tune", "student", 5), ("measure", "judge", 10)] {
        let paused = Paused::at(&place, (node, step), place.run(name, ""));
        paused.after(name, step);
        paused.going.signal("INT");
        until("the signal to be seen", || {
            paused.going.text().contains("stopping after this step").then_some(())
        });
        let (status, text) = paused.release().wait();
        assert_eq!(status.code(), Some(130), "{text}");
        assert_eq!(place.checkpoints(name).last().expect("one").0, step + 1);
        exits(0, place.resume(name));
        assert_eq!(place.metrics(name), numbers, "{name}");
    }
}

#[test]
fn a_run_moves_to_other_processes_when_it_is_resumed() {
    let (place, numbers) = begin();
    let paused = Paused::at(&place, ("student", 7), place.run("moved", IPC));
    paused.going.signal("KILL");
    paused.going.wait();
    let overlay = place.write("tcp.yaml", TCP);
    let mut command = place.resume("moved");
    command.arg("--with").arg(overlay);
    exits(0, command);
    assert_eq!(place.metrics("moved"), numbers);
}
