//! What `data/video_clips` gives beside frames: texts, sound and dialogues.

use schemas::frame::{Frame, Frames};
use schemas::port::Ports;

use super::Config;
use crate::video::{Clip, DialogueOptions, TextOptions};

impl Config {
    /// Ports of texts, sound and dialogues.
    pub(super) fn beside(&self, ports: Ports) -> Ports {
        let Self { batch, texts, sound, dialogue, .. } = self;
        let ids = |ports: Ports, port: &str, length: usize, about: &str| {
            ports.plain(port, format!("{batch} {length}")).int().about(about)
        };
        let mask = "1 = token, 0 = padding";
        let mut ports = ports;
        for (name, TextOptions { length, from, .. }) in texts {
            ports = ids(ports, name, *length, &format!("ids of `{from}` of the manifest"));
            ports = ids(ports, &format!("{name}_mask"), *length, mask);
        }
        if let Some(sound) = sound {
            let samples = sound.samples();
            ports = ports
                .plain("waveform", format!("{batch} {samples}"))
                .about("mono, 16 kHz, -1..1")
                .plain("heard", format!("{batch}"))
                .int()
                .about("1 where the file has a sound track");
        }
        if let Some(DialogueOptions { length, question, .. }) = dialogue {
            ports = ids(ports, "dialogue", *length, "ids, with placeholders for the video");
            ports = ids(ports, "dialogue_mask", *length, mask);
            ports = ids(ports, "dialogue_labels", *length, "ids of the answers, else -100");
            ports = ids(ports, "question", question.length, "ids of the question alone");
            ports = ids(ports, "question_mask", question.length, mask);
        }
        ports
    }

    /// Frames of the ports of [`Config::beside`].
    pub(super) fn give_beside(&self, clips: &[Clip], frames: &mut Frames) {
        if let Some(sound) = &self.sound {
            let samples = clips.iter().flat_map(|clip| clip.sound.samples.iter().copied());
            let waveform = Frame::f32([clips.len(), sound.samples()], samples);
            frames.insert("waveform".to_owned(), waveform);
            let heard = clips.iter().map(|clip| clip.sound.track.into());
            frames.insert("heard".to_owned(), Frame::i64([clips.len()], heard));
        }
        for (port, row) in clips.first().into_iter().flat_map(|clip| &clip.words) {
            let rows = clips.iter().flat_map(|clip| clip.words[port].iter().copied());
            frames.insert(port.clone(), Frame::i64([clips.len(), row.len()], rows));
        }
    }
}
