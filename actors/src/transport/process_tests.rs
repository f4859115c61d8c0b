//! Round trips between two processes, one of which is frozen, woken and killed.

use std::io::{BufRead, Write};
use std::process::{Child, Command, Stdio};

use super::tests::{PATIENCE, SIZES, Side, ipc, message, name, options, wait_for_memory};
use super::*;

/// The second process of the tests below; reads the address from its input.
#[test]
#[ignore = "run by other tests"]
fn second_process() {
    let mut address = String::new();
    std::io::stdin().lock().read_line(&mut address).unwrap();
    let there = Side::start(options("there"));
    there.transport.connect(&name("here"), &address.trim().parse().unwrap(), None).unwrap();
    while let Ok(event) = there.inbound.recv() {
        if let Inbound::Message { message, .. } = event {
            there.transport.send(&name("here"), message).unwrap();
        }
    }
}

struct Process(Child);

impl Process {
    fn start(address: &Address) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([
            "--exact",
            "transport::process_tests::second_process",
            "--ignored",
            "--nocapture",
        ]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "{address}").unwrap();
        Self(child)
    }

    fn signal(&self, number: &str) {
        assert!(
            Command::new("kill")
                .args([number, &self.0.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_second_process_echoes_and_is_lost_when_it_is_killed_or_frozen() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = options("here");
    first.bind = vec![ipc(&directory)];
    let here = Side::start(first);
    let address = here.transport.addresses().remove(0);
    let process = Process::start(&address);
    here.connected();
    wait_for_memory(&here, &name("there"));
    for sizes in SIZES {
        here.transport.send(&name("there"), message(sizes)).unwrap();
        assert!(here.message() == message(sizes));
    }
    process.signal("-STOP");
    assert!(matches!(here.lost(), Cause::Silent { .. }));
    process.signal("-CONT");
    here.connected();
    process.signal("-KILL");
    // What is woken may dial twice: its first try is then replaced by its second.
    while here.lost() != Cause::Disconnected {
        here.connected();
    }
    let _again = Process::start(&address);
    let sent = message(&[1 << 20]);
    loop {
        match here.inbound.recv_timeout(PATIENCE).expect("an echo") {
            Inbound::Message { message, .. } => break assert!(message == sent),
            // A session of the killed process may open out of what is left in the socket; its loss is reported.
            Inbound::Connected { .. } => drop(here.transport.send(&name("there"), sent.clone())),
            Inbound::Lost { .. } => {}
        }
    }
}
