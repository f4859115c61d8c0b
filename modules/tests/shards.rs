//! Clips, sound and words from WebDataset shards and pictures, as from files beside each other.

use std::path::{Path, PathBuf};
use std::process::Command;

use modules::data::video_clips::Config;
use modules::kind::{Call, Host};
use modules::rng::Key;
use modules::shapes::{self, Film, encoder, write_film};
use modules::video::{DecodeOptions, Manifest, Media, Part, Reading, Video, VideoError};
use schemas::dims::Dims;
use schemas::frame::Frames;
use schemas::node::{At, Forwarded};
use serde_json::{Value, json};

fn pictures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures")
}

/// Packs files with the `tar` program, under other names.
fn pack(folder: &Path, shard: &str, form: &str, names: &[&str]) -> bool {
    let mut pack = Command::new("tar");
    pack.arg(format!("--format={form}")).arg("-cf").arg(shard).args(names);
    pack.current_dir(folder).status().is_ok_and(|status| status.success())
}

fn forward(config: Value) -> Result<Forwarded, String> {
    let config: Config = serde_json::from_value(config).unwrap();
    assert_eq!(config.check(&Dims::new()), []);
    let key = Key::new(5, "clips");
    let mut state = config.open(&Dims::new(), &key).map_err(|error| error.to_string())?;
    let call = Call::new(key, At::default());
    config.forward(&mut state, Frames::new(), &call).map_err(|error| error.to_string())
}

/// Two clips with sound and captions in a folder.
fn world() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, shift) in [("one", 0), ("two", 90)] {
        let frames = 16;
        let rgb = (0..frames * 32 * 32 * 3).map(|at| (at / 3072 * 9 + shift) as u8).collect();
        let sound = (0..32_000).map(|at| (at as f32 * 0.1).sin() * 0.5).collect();
        let film = Film { rgb, height: 32, width: 32, fps: 8, sound };
        write_film(&film, encoder().unwrap().0, &dir.path().join(format!("{name}.mp4"))).unwrap();
        std::fs::write(dir.path().join(format!("{name}.txt")), format!("a {name}\n")).unwrap();
        let record = json!({ "label": shift, "captions": { "video": ["a disc"] } });
        std::fs::write(dir.path().join(format!("{name}.json")), record.to_string()).unwrap();
    }
    let vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\none\ntwo\ndisc\n";
    std::fs::write(dir.path().join("vocab.txt"), vocabulary).unwrap();
    dir
}

#[test]
fn a_shard_gives_the_bits_of_the_files_in_it() {
    let dir = world();
    let names = ["one.mp4", "one.txt", "one.json", "two.mp4", "two.txt", "two.json"];
    let lines = ["one", "two"].map(|name| json!({ "path": format!("{name}.mp4"), "txt": name }));
    let manifest = dir.path().join("list.jsonl");
    std::fs::write(&manifest, format!("{}\n{}\n", lines[0], lines[1])).unwrap();
    let of = |root: PathBuf, more: Value| {
        let text = json!({ "from": "txt", "tokenizer": dir.path(), "length": 5 });
        let mut all = json!({ "root": root, "batch": 2, "frames": 4, "size": 16, "shuffle": false,
            "workers": 1, "texts": { "caption": text }, "sound": { "seconds": 1.5 } });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        forward(all).unwrap()
    };
    let plain = of(manifest, json!({}));
    for form in ["ustar", "gnu", "pax"] {
        let shard = format!("shard-{form}.tar");
        assert!(pack(dir.path(), &shard, form, &names), "{form}");
        let packed = of(dir.path().join(&shard), json!({ "labels": ["label"] }));
        assert_eq!(packed.notices.len(), 0, "{:?}", packed.notices);
        for port in ["video", "waveform", "heard"] {
            assert_eq!(packed.frames[port].bytes(), plain.frames[port].bytes(), "{form} {port}");
        }
        assert_eq!(packed.frames["label"].to_i64(), [0, 90]);
        assert_eq!(packed.frames["caption"].to_i64(), [2, 5, 6, 3, 0, 2, 5, 7, 3, 0]);
    }
}

#[test]
fn a_damaged_clip_of_a_shard_is_named_with_the_shard_and_replaced() {
    let dir = world();
    let film = std::fs::read(dir.path().join("two.mp4")).unwrap();
    std::fs::write(dir.path().join("two.mp4"), &film[..film.len() / 2]).unwrap();
    assert!(pack(dir.path(), "s-0.tar", "pax", &["one.mp4", "two.mp4"]));
    let root = dir.path().join("s-{0..0}.tar");
    let given = forward(json!({ "root": root, "batch": 2, "frames": 2, "size": 16,
        "shuffle": false, "workers": 1 }))
    .unwrap();
    let said = format!("{:?}", given.notices);
    assert!(given.notices.len() == 1 && said.contains("s-0.tar/two.mp4"), "{said}");
    assert_eq!(given.frames["sample"].to_i64(), [0, 0]);
}

#[test]
fn a_sound_file_beside_the_clip_is_what_is_heard() {
    let dir = world();
    let mut wav =
        b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x02\0\x40\x1f\0\0\0\x7d\0\0\x04\0\x10\0data"
            .to_vec();
    let frames = 8000u32;
    wav.extend((frames * 4).to_le_bytes());
    // Left 0.5, right 0: the mean is a quarter.
    wav.extend((0..frames).flat_map(|_| [0, 0x40, 0, 0]));
    let size = wav.len() as u32 - 8;
    wav[4..8].copy_from_slice(&size.to_le_bytes());
    std::fs::write(dir.path().join("one.wav"), wav).unwrap();
    assert!(pack(dir.path(), "s.tar", "ustar", &["one.mp4", "one.wav"]));
    let given = forward(json!({ "root": dir.path().join("s.tar"), "batch": 1, "frames": 2,
        "size": 16, "shuffle": false, "sound": { "seconds": 2.0 } }))
    .unwrap();
    let sound = given.frames["waveform"].to_f32();
    let near = |from: usize, to: usize, value: f32| {
        sound[from..to].iter().all(|sample| (sample - value).abs() < 0.01)
    };
    assert!(near(200, 15_800, 0.25) && near(16_200, 32_000, 0.0), "{:?}", &sound[..300]);
}

#[test]
fn pictures_are_clips_of_one_frame() {
    let names = ["two.jpg", "two.png", "two.webp"];
    for name in names {
        let mut video = Video::open(pictures().join(name), &DecodeOptions::default()).unwrap();
        assert_eq!((video.info().frames, video.info().width, video.info().height), (1, 32, 24));
        let frames = video.frames(&[0]).unwrap();
        let pixel = |row: usize, column: usize| &frames.data[(row * 32 + column) * 3..][..3];
        let near = |pixel: &[u8], colour: [u8; 3]| {
            pixel.iter().zip(colour).all(|(one, other)| one.abs_diff(other) < 12)
        };
        let (left, right) = (pixel(12, 5), pixel(12, 28));
        assert!(near(left, [255, 0, 0]) && near(right, [0, 0, 255]), "{name} {left:?} {right:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        std::fs::copy(pictures().join(name), dir.path().join(format!("p{name}"))).unwrap();
        let key = name.replace('.', "_");
        let end = name.split('.').next_back().unwrap();
        std::fs::copy(pictures().join(name), dir.path().join(format!("{key}.{end}"))).unwrap();
    }
    let members = ["two_jpg.jpg", "two_png.png", "two_webp.webp"];
    assert!(pack(dir.path(), "s.tar", "ustar", &members));
    for member in members {
        std::fs::remove_file(dir.path().join(member)).unwrap();
    }
    for sampling in ["segments", "sparse", "intervals"] {
        let given = forward(json!({ "root": dir.path(), "batch": 6, "frames": 3, "size": 16,
            "shuffle": false, "sampling": sampling, "sound": { "seconds": 0.1 } }))
        .unwrap();
        assert_eq!(given.notices.len(), 0, "{:?}", given.notices);
        assert_eq!(given.frames["heard"].to_i64(), [0; 6]);
        let video = given.frames["video"].to_f32();
        let frame = |clip: usize, time: usize| &video[(clip * 9 + time) * 256..][..256];
        for clip in 0..6 {
            assert_eq!((frame(clip, 0), frame(clip, 0)), (frame(clip, 1), frame(clip, 2)));
            // The files and the members of the shard are the same pictures.
            assert_eq!(frame(clip, 0), frame((clip + 3) % 6, 0));
        }
    }
}

#[test]
fn a_part_of_a_file_ends_where_it_ends() {
    let dir = world();
    let film = std::fs::read(dir.path().join("one.mp4")).unwrap();
    let other = std::fs::read(dir.path().join("two.mp4")).unwrap();
    let file = dir.path().join("odd: name,start,3.bin");
    std::fs::write(&file, [&[1; 77][..], &film, &other].concat()).unwrap();
    let part = |start: usize, end: usize| {
        let (name, start, end) = ("clip.mp4".to_owned(), start as u64, end as u64);
        Media { file: file.clone(), part: Some(Part { name, start, end }) }
    };
    for keep_bytes in [0, 32 << 20] {
        let options = DecodeOptions { keep_bytes, ..DecodeOptions::default() };
        let read = |media: Media| -> Result<Vec<u8>, VideoError> {
            let mut video = Video::open(&media, &options)?;
            let late = video.frames(&[3, 15])?.data;
            Ok([late, video.frames(&[1])?.data].concat())
        };
        let whole = |name: &str| read(dir.path().join(name).into()).unwrap();
        let middle = 77 + film.len();
        assert_eq!(read(part(77, middle)).unwrap(), whole("one.mp4"));
        assert_eq!(read(part(middle, middle + other.len())).unwrap(), whole("two.mp4"));
        let error = read(part(77, 77 + film.len() / 2)).unwrap_err().to_string();
        assert!(error.contains("odd: name,start,3.bin/clip.mp4"), "{error}");
    }
}

#[test]
fn a_set_of_shapes_in_shards_is_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    let few = shapes::Options { train: 3, test: 0, untrimmed: 0, ..Default::default() };
    shapes::generate(dir.path(), &few, &|_, _| {}).unwrap();
    let train = dir.path().join("train");
    assert!(pack(&train, "../shard.tar", "gnu", &["00000.mp4", "00001.mp4", "00002.mp4"]));
    let found = Manifest::read(&dir.path().join("shard.tar"), &Reading::default()).unwrap();
    let ids: Vec<&str> = found.entries.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(ids, ["shard.tar/00000", "shard.tar/00001", "shard.tar/00002"]);
}
