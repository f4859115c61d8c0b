//! Every example of the page on data is read as it stands there.

use std::path::Path;
use std::process::Command;

use modules::data::video_clips::Config;
use modules::kind::{Call, Host};
use modules::rng::Key;
use modules::shapes::{Film, encoder, write_film};
use modules::video::{Manifest, Reading};
use schemas::diagnostic::Report;
use schemas::dims::Dims;
use schemas::frame::Frames;
use schemas::node::At;
use schemas::yaml;

const VOCABULARY: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nred\ndisc\nturns\n.\n";

/// A file of the page: its name, its form, its text.
type Written = (String, String, String);

/// The examples: files with the node that reads them.
fn examples(page: &str) -> Vec<(Written, String)> {
    let (mut found, mut name, mut written) = (Vec::new(), String::new(), None);
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(form) = line.strip_prefix("```") {
            let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            let body = body.join("\n") + "\n";
            match form {
                "yaml" => found.push((written.take().expect("a file before each node"), body)),
                form => written = Some((name.clone(), form.to_owned(), body)),
            }
        } else if let Some(rest) = line.strip_prefix('`') {
            name = rest.split('`').next().unwrap().to_owned();
        }
    }
    found
}

fn film(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let (frames, size) = (8, 32);
    let rgb = (0..frames * size * size * 3).map(|at| (at / (size * size * 3) * 9) as u8).collect();
    let sound = (0..16_000).map(|at| (at as f32 * 0.1).sin() * 0.5).collect();
    let film = Film { rgb, height: size, width: size, fps: 8, sound };
    write_film(&film, encoder().unwrap().0, path).unwrap();
}

/// Writes what the page shows, and packs it where that is an archive.
fn write(dir: &Path, (name, form, text): &Written) {
    let file = dir.join(name);
    let folder = file.parent().unwrap();
    std::fs::create_dir_all(folder).unwrap();
    if form != "members" {
        std::fs::write(&file, text).unwrap();
        return;
    }
    let mut pack = Command::new("tar");
    pack.arg("-cf").arg(&file).current_dir(folder);
    for line in text.lines() {
        let (member, contents) = line.split_once(' ').unwrap_or((line, ""));
        if contents.is_empty() {
            film(&folder.join(member));
        } else {
            std::fs::write(folder.join(member), contents).unwrap();
        }
        pack.arg(member);
    }
    assert!(pack.status().unwrap().success());
}

#[test]
fn the_examples_of_the_page_on_data_give_clips() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/data.md");
    let page = std::fs::read_to_string(page).unwrap();
    let examples = examples(&page);
    assert_eq!(examples.len(), 7);
    for (written, node) in &examples {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, written);
        std::fs::write(dir.join("vocab.txt"), VOCABULARY).unwrap();
        let mut report = Report::default();
        let tree = yaml::parse("page", node, &mut report).unwrap();
        let mut options = tree.get("clips").unwrap().to_json();
        assert_eq!(options["kind"], "data/video_clips");
        let all = options.as_object_mut().unwrap();
        all.remove("kind");
        // The page's paths are relative to where it is run.
        let text = serde_json::to_string(&options).unwrap();
        let text = text.replace("\"vocab.txt\"", &format!("{:?}", dir.join("vocab.txt")));
        let mut config: Config = serde_json::from_str(&text).unwrap();
        config.root = dir.join(&config.root);
        assert_eq!(config.check(&Dims::new()), [], "{node}");
        let how = Reading {
            columns: config.columns.clone(),
            prefix: config.prefix.clone(),
            suffix: config.suffix.clone(),
            ..Reading::default()
        };
        for entry in Manifest::read(&config.root, &how).unwrap().entries {
            if entry.media.part.is_none() {
                film(&entry.media.file);
            }
        }
        let key = Key::new(1, "clips");
        let mut state = config.open(&Dims::new(), &key).unwrap();
        let call = Call::new(key, At::default());
        let given = config.forward(&mut state, Frames::new(), &call).unwrap();
        assert_eq!(given.notices.len(), 0, "{node}{:?}", given.notices);
        for port in config.ports(&[]).outputs {
            let shape: Vec<String> =
                given.frames[&port.name].shape().iter().map(usize::to_string).collect();
            assert_eq!(shape.join(" "), port.dims, "{node}{}", port.name);
        }
        if config.texts.contains_key("caption") {
            assert!(given.frames["caption"].to_i64().contains(&6), "the word `red`: {node}");
        }
    }
}
