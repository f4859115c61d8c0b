//! Files of many codecs and containers against the `ffmpeg` program, frame by frame; and files that
//! are no videos, or not any more. Kinds of files whose encoder is missing are left out.

use std::path::{Path, PathBuf};
use std::process::Command;

use modules::shapes;
use modules::video::{DecodeOptions, IndexCache, Info, Video, VideoError};
use proptest::prelude::*;
use rayon::prelude::*;

/// File name, size of the source, encoder arguments, largest difference to `ffmpeg` in levels.
type Kind = (&'static str, &'static str, &'static str, u8);

const ZOO: [Kind; 27] = [
    ("plain.mp4", "64x48", "-c:v libx264 -g 10 -bf 3", 0),
    ("open_groups.mp4", "64x48", "-c:v libx264 -g 8 -bf 3 -x264-params open-gop=1", 0),
    ("gradual.mp4", "64x48", "-c:v libx264 -g 8 -x264-params intra-refresh=1", 0),
    ("odd_444.mp4", "51x37", "-c:v libx264 -pix_fmt yuv444p", 0),
    ("odd_rgb.mkv", "51x37", "-c:v ffv1 -pix_fmt gbrp", 0),
    ("narrow.mp4", "340x18", "-c:v libx264 -pix_fmt yuv420p", 0),
    ("ten_bits.mp4", "64x48", "-c:v libx264 -pix_fmt yuv420p10le", 0),
    ("grey.mkv", "64x48", "-c:v ffv1 -pix_fmt gray", 0),
    ("hevc.mp4", "64x48", "-c:v libx265 -x265-params log-level=none:keyint=8", 0),
    ("hevc.mkv", "64x48", "-c:v libx265 -pix_fmt yuv420p10le -x265-params log-level=none", 0),
    ("av1.mp4", "64x48", "-c:v libaom-av1 -cpu-used 8 -g 8", 0),
    ("av1.mkv", "64x64", "-c:v libaom-av1 -cpu-used 8 -g 8 -pix_fmt yuv420p", 0),
    ("vp9.webm", "64x48", "-c:v libvpx-vp9 -deadline realtime -g 8", 0),
    ("vp8.webm", "64x48", "-c:v libvpx -auto-alt-ref 1 -lag-in-frames 8", 0),
    ("part2.mp4", "64x48", "-c:v mpeg4 -bf 2 -g 8", 0),
    ("part2.avi", "64x48", "-c:v mpeg4 -bf 2 -g 8", 0),
    ("simple.avi", "64x48", "-c:v mpeg4 -g 8", 0),
    ("motion_jpeg.avi", "64x48", "-c:v mjpeg -pix_fmt yuvj420p", 0),
    ("mpeg2.mpg", "64x48", "-c:v mpeg2video -bf 2", 0),
    ("stream.ts", "64x48", "-c:v libx264 -g 8 -bf 2", 0),
    ("bare.h264", "64x48", "-c:v libx264 -g 8 -bf 2", 0),
    ("picture.gif", "64x48", "", 0),
    ("fragments.mp4", "64x48", "-c:v libx264 -g 8 -movflags frag_keyframe+empty_moov", 0),
    ("groups.mkv", "64x48", "-c:v libx264 -g 8", 0),
    ("uneven.mkv", "64x48", "-vf select='lt(mod(n,7),3)' -vsync vfr -c:v libx264 -g 5", 0),
    ("uneven.mp4", "64x48", "-vf select='lt(mod(n,5),2)' -vsync vfr -c:v libx264 -g 5", 0),
    (
        "full_709.mp4",
        "64x48",
        "-vf scale=out_range=full:out_color_matrix=bt709 -color_range pc -colorspace bt709 -c:v libx264",
        0,
    ),
];

fn ffmpeg(arguments: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-y"])
        .args(arguments)
        .output()
        .ok()?;
    output.status.success().then_some(output.stdout)
}

fn make(dir: &Path, kind: &Kind) -> Option<PathBuf> {
    let (name, size, arguments, _) = kind;
    let file = dir.join(name);
    let source = format!("testsrc2=size={size}:rate=12:duration=2");
    let mut all = vec!["-f", "lavfi", "-i", &source];
    all.extend(arguments.split_whitespace());
    let name = file.to_str()?;
    all.push(name);
    ffmpeg(&all)?;
    Some(file)
}

/// Every frame as the `ffmpeg` program decodes it.
fn reference(file: &Path) -> Option<Vec<u8>> {
    let file = file.to_str()?;
    let form = ["-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"];
    ffmpeg(&[&["-i", file], form.as_slice()].concat())
}

fn open(file: &Path, keep_bytes: u64) -> Result<Video, VideoError> {
    Video::open(file, &DecodeOptions { keep_bytes, ..DecodeOptions::default() })
}

/// Compares all frames with the reference, and chosen frames with all frames.
fn compare(file: &Path, bound: u8) -> Result<Info, String> {
    let name = file.display();
    let expected = reference(file).ok_or(format!("{name}: the program cannot decode it"))?;
    let mut video = open(file, 1 << 20).map_err(|error| error.to_string())?;
    let info = video.info().clone();
    let size = info.height * info.width * 3;
    if expected.len() != size * info.frames as usize {
        let frames = expected.len() as f64 / size as f64;
        return Err(format!("{name}: {info:?}, the program gives {frames} frames"));
    }
    let all: Vec<u64> = (0..info.frames).collect();
    let frames = video.frames(&all).map_err(|error| error.to_string())?;
    let pairs = frames.data.iter().zip(&expected);
    let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    if worst > bound {
        return Err(format!("{name}: differs by {worst} levels"));
    }
    let last = info.frames - 1;
    let choices = [
        vec![last],
        vec![0, 0, last],
        vec![last / 2, last / 2 + 1],
        (0..=last).step_by(3).collect(),
    ];
    for keep in [1 << 20, 0] {
        let mut video = open(file, keep).map_err(|error| error.to_string())?;
        for choice in &choices {
            let some = video.frames(choice).map_err(|error| error.to_string())?;
            for (at, &number) in choice.iter().enumerate() {
                if some.frame(at) != frames.frame(number as usize) {
                    return Err(format!("{name}: frame {number} of {choice:?}, keep {keep}"));
                }
            }
        }
    }
    let several = DecodeOptions { threads: 3, ..DecodeOptions::default() };
    let mut video = Video::open(file, &several).map_err(|error| error.to_string())?;
    if video.frames(&all) != Ok(frames) {
        return Err(format!("{name}: other frames with several threads"));
    }
    Ok(info)
}

#[test]
fn every_kind_of_file_decodes_as_the_ffmpeg_program_does() {
    let dir = tempfile::tempdir().unwrap();
    let one = |kind: &Kind| {
        let file = make(dir.path(), kind)?;
        let sound = |info: Info| {
            let known = info.fps > 0.0 && info.duration > 0.0;
            if known { Ok(()) } else { Err(format!("{}: {info:?}", kind.0)) }
        };
        Some(compare(&file, kind.3).and_then(sound))
    };
    let results: Vec<Result<(), String>> = ZOO.par_iter().filter_map(one).collect();
    let made = results.len();
    let wrong: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    println!("{made} kinds of {}", ZOO.len());
    assert!(wrong.is_empty(), "{} of {made} kinds:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_turned_or_cut_file_shows_what_a_player_shows() {
    let dir = tempfile::tempdir().unwrap();
    let Some(plain) = make(dir.path(), &ZOO[0]) else { return };
    let plain = plain.to_str().unwrap();
    for angle in ["90", "180", "270"] {
        let file = dir.path().join(format!("turned_{angle}.mp4"));
        let rotate = format!("rotate={angle}");
        let name = file.to_str().unwrap();
        ffmpeg(&["-i", plain, "-c", "copy", "-metadata:s:v:0", &rotate, name]).unwrap();
        // The program turns before it converts, so chroma is interpolated along other axes.
        let info = compare(&file, 60).unwrap();
        let upright = angle == "180";
        assert_eq!((info.width, info.height), if upright { (64, 48) } else { (48, 64) });
    }
    let cut = dir.path().join("cut.mp4");
    let name = cut.to_str().unwrap();
    ffmpeg(&["-ss", "0.6", "-i", plain, "-c", "copy", name]).unwrap();
    let info = compare(&cut, 0).unwrap();
    assert!(info.frames < 30, "{info:?}");
}

/// One small H.264 file with sound, made in process.
fn sample(dir: &Path) -> PathBuf {
    let out = dir.join("shapes");
    let few = shapes::Options { train: 1, test: 0, untrimmed: 0, ..shapes::Options::default() };
    shapes::generate(&out, &few, &|_, _| {}).unwrap();
    out.join("train/00000.mp4")
}

#[test]
fn a_file_that_is_no_video_is_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let fails = |file: &Path| match open(file, 1 << 20) {
        Ok(video) => panic!("{} opened: {:?}", file.display(), video.info()),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(file.to_str().unwrap()), "{text}");
            error
        }
    };
    assert!(fails(&path("gone.mp4")).to_string().contains("No such file"));
    assert!(matches!(fails(dir.path()), VideoError::Unreadable { .. }));
    std::fs::write(path("empty.mp4"), "").unwrap();
    assert!(matches!(fails(&path("empty.mp4")), VideoError::Empty { .. }));
    std::fs::write(path("text.mp4"), "not a video\n".repeat(400)).unwrap();
    assert!(matches!(fails(&path("text.mp4")), VideoError::Unreadable { .. }));
    // A play-list must not make the reader open other files.
    std::fs::write(path("list.mp4"), "ffconcat version 1.0\nfile sample.mp4\n").unwrap();
    assert!(matches!(fails(&path("list.mp4")), VideoError::Unreadable { .. }));
    let tone = path("tone.mp4");
    let made =
        ffmpeg(&["-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", tone.to_str().unwrap()]);
    if made.is_some() {
        assert!(matches!(fails(&tone), VideoError::NoVideo { found, .. } if found == "audio"));
    }
}

#[test]
fn a_file_that_is_cut_off_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [ZOO[0], ZOO[23], ZOO[15]] {
        let Some(file) = make(dir.path(), &kind) else { continue };
        let bytes = std::fs::read(&file).unwrap();
        // The index lies in front, as in files for the web, or there is none.
        let web = dir.path().join(format!("web_{}", kind.0));
        let (from, to) = (file.to_str().unwrap(), web.to_str().unwrap());
        ffmpeg(&["-i", from, "-c", "copy", "-movflags", "+faststart", to]).unwrap();
        let whole = std::fs::read(&web).unwrap();
        std::fs::write(&web, &whole[..whole.len() * 2 / 3]).unwrap();
        let error = open(&web, 1 << 20).err().unwrap_or_else(|| panic!("{} opened", kind.0));
        assert!(matches!(error, VideoError::Damaged { readable: 1.., .. }), "{error}");
        std::fs::write(&file, &bytes[..bytes.len() / 20]).unwrap();
        assert!(open(&file, 1 << 20).is_err(), "{}", kind.0);
    }
}

/// Whether the `ffmpeg` program decodes a file to its end and has nothing to say about it.
fn is_praised(file: &Path) -> bool {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-i"])
        .arg(file)
        .args(["-map", "0:v:0", "-f", "null", "-"])
        .output()
        .unwrap();
    output.status.success() && output.stderr.is_empty()
}

fn read_all(file: &Path, keep_bytes: u64) -> Result<(), VideoError> {
    let mut video = open(file, keep_bytes)?;
    let all: Vec<u64> = (0..video.info().frames).collect();
    video.frames(&all).map(drop)
}

#[test]
fn what_the_ffmpeg_program_complains_about_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let others: [Kind; 2] =
        [("media.wmv", "64x48", "-c:v wmv2 -g 8", 0), ("flash.flv", "64x48", "-c:v flv1 -g 8", 0)];
    let one = |kind: &Kind| -> Vec<String> {
        let Some(file) = make(dir.path(), kind) else { return Vec::new() };
        let bytes = std::fs::read(&file).unwrap();
        let mut missed = Vec::new();
        for eighth in [2, 4, 6] {
            let mut flipped = bytes.clone();
            let at = bytes.len() * eighth / 8;
            flipped[at..at + 12].iter_mut().for_each(|byte| *byte ^= 0x5a);
            std::fs::write(&file, &flipped).unwrap();
            let praised = is_praised(&file);
            for keep in [1 << 20, 0] {
                if !praised && read_all(&file, keep).is_ok() {
                    missed.push(format!("{} flipped at {eighth}/8, keep {keep}", kind.0));
                }
            }
        }
        missed
    };
    let kinds: Vec<&Kind> = ZOO.iter().chain(&others).collect();
    let missed: Vec<String> = kinds.par_iter().flat_map_iter(|kind| one(kind)).collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// Only the first frames of a clip may be read: the missing end must be found when it opens.
#[test]
fn a_file_without_its_end_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let media: Kind = ("media.wmv", "64x48", "-c:v wmv2 -g 8", 0);
    for kind in [ZOO[18], ZOO[19], ZOO[21], media] {
        let Some(file) = make(dir.path(), &kind) else { continue };
        let bytes = std::fs::read(&file).unwrap();
        for tenth in [4, 6, 8] {
            std::fs::write(&file, &bytes[..bytes.len() * tenth / 10]).unwrap();
            let opened = open(&file, 1 << 20).is_ok();
            // A cut between two frames cannot be told from a shorter file.
            let told = kind.0 == "picture.gif" || !is_praised(&file);
            assert!(!(told && opened), "{} cut at {tenth}/10", kind.0);
        }
    }
}

#[test]
fn bounds_are_kept_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = sample(dir.path());
    let mut video = open(&file, 1 << 20).unwrap();
    assert!(matches!(video.frames(&[16]), Err(VideoError::OutOfRange { frames: 16, .. })));
    assert!(matches!(video.frames(&[3, 2]), Err(VideoError::Unsorted { .. })));
    assert_eq!(video.frames(&[]).unwrap().count, 0);
    let small = DecodeOptions { max_side: 32, ..DecodeOptions::default() };
    assert!(matches!(Video::open(&file, &small), Err(VideoError::TooLarge { value: 64, .. })));
    let few = DecodeOptions { max_bytes: 30_000, ..DecodeOptions::default() };
    let mut video = Video::open(&file, &few).unwrap();
    assert!(video.frames(&[1, 2]).is_ok());
    assert!(matches!(video.frames(&[1, 2, 3]), Err(VideoError::TooLarge { .. })));
}

#[test]
fn an_index_is_kept_until_the_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let file = sample(dir.path());
    let (cache, options) =
        (IndexCache::default(), DecodeOptions { keep_bytes: 0, ..DecodeOptions::default() });
    let mut first = Video::open_with(&file, &options, &cache).unwrap();
    let mut again = Video::open_with(&file, &options, &cache).unwrap();
    assert_eq!(first.frames(&[3, 12]).unwrap(), again.frames(&[3, 12]).unwrap());
    let film = shapes::Film {
        rgb: vec![9; 32 * 32 * 3 * 5],
        height: 32,
        width: 32,
        fps: 5,
        ..Default::default()
    };
    shapes::write_film(&film, shapes::encoder().unwrap().0, &file).unwrap();
    let changed = Video::open_with(&file, &options, &cache).unwrap();
    assert_eq!((changed.info().frames, changed.info().has_audio), (5, false));
}

/// Opens and decodes whatever these bytes are; only a panic or a hang is wrong.
fn try_all(file: &Path, bytes: &[u8]) {
    std::fs::write(file, bytes).unwrap();
    let options = DecodeOptions { max_side: 512, max_bytes: 1 << 26, ..DecodeOptions::default() };
    if let Ok(mut video) = Video::open(file, &options) {
        let last = video.info().frames - 1;
        for choice in [vec![0], vec![last / 2, last], vec![last]] {
            let _ = video.frames(&choice);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in prop::option::of(any::<prop::sample::Index>()),
        kind in 0usize..6,
    ) {
        thread_local! {
            static FILES: (tempfile::TempDir, Vec<Vec<u8>>) = {
                let dir = tempfile::tempdir().unwrap();
                let zoo = [ZOO[8], ZOO[12], ZOO[15], ZOO[19], ZOO[21]];
                let files = zoo.iter().filter_map(|kind| make(dir.path(), kind));
                let files = std::iter::once(sample(dir.path())).chain(files);
                let bytes = files.map(|file| std::fs::read(file).unwrap()).collect();
                (dir, bytes)
            };
        }
        FILES.with(|(dir, files)| {
            let mut bytes = files[kind % files.len()].clone();
            for (at, value) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            try_all(&dir.path().join("changed.mp4"), &bytes);
        });
    }

    #[test]
    fn random_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..4000),
        head in prop::sample::select(vec![
            b"\0\0\0\x18ftypisom".to_vec(), b"\x1aE\xdf\xa3".to_vec(), b"GIF89a".to_vec(),
            b"RIFF\0\x10\0\0AVI ".to_vec(), b"\0\0\0\x01\x67".to_vec(), Vec::new(),
        ]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        try_all(&dir.path().join("random.mp4"), &[head, bytes].concat());
    }
}
