//! JSON files of published data sets: LLaVA, VideoChat2, MSR-VTT.
//!
//! | shape                                                        | record                       |
//! |--------------------------------------------------------------|------------------------------|
//! | `[{video or image, conversations: [{from, value}]}]`         | as it is                     |
//! | `[{video or image, QA: [{i, q, a}]}]`                        | as it is                     |
//! | `{videos: [{video_id}], sentences: [{video_id, caption}]}`   | a video, with its `captions` |

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::lines::Lines;
use super::manifest::{Manifest, ManifestError, Reading};

/// Fields that name the file of an entry, the first first.
const FILES: [&str; 3] = ["path", "video", "image"];

const SHAPES: &str = "known are a list of objects with `path`, `video` or `image` (LLaVA, VideoChat2), \
                      and an object with `videos` and `sentences` (MSR-VTT)";

/// The entries of a JSON file, whose shape tells what it is.
pub(super) fn json_file(path: &Path, how: &Reading) -> Result<Manifest, ManifestError> {
    let io = |reason: String| ManifestError::Io { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| io(error.to_string()))?;
    let value = serde_json::from_slice::<Value>(&bytes);
    drop(bytes);
    let mut lines = Lines::new(path, how);
    match value {
        Err(error) => lines.problem(error.line(), &format!("not JSON: {error}")),
        Ok(Value::Array(items)) => list(items, how, &mut lines),
        Ok(Value::Object(all)) if all.contains_key("sentences") => captioned(all, how, &mut lines),
        Ok(Value::Object(all)) => {
            let names: Vec<String> = all.keys().take(8).map(|name| format!("`{name}`")).collect();
            let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            lines.problem(1, &format!("an object with {names}; {SHAPES}"));
        }
        Ok(_) => lines.problem(1, &format!("neither a list nor an object; {SHAPES}")),
    }
    lines.finish()
}

/// One object an entry.
fn list(items: Vec<Value>, how: &Reading, lines: &mut Lines<'_>) {
    for (number, item) in items.into_iter().enumerate() {
        let place = format!("entry {number}");
        let Value::Object(mut fields) = item else {
            lines.problem(place, &format!("not an object; {SHAPES}"));
            continue;
        };
        if !how.columns.contains_key("path") {
            let given = |name: &&str| fields.get(*name).is_some_and(|value| !value.is_null());
            let Some(name) = FILES.into_iter().find(given) else {
                let words = fields.contains_key("conversations") || fields.contains_key("QA");
                match words {
                    // LLaVA's lists hold dialogues without a picture.
                    true => lines.unseen += 1,
                    false => lines.problem(place, &format!("no file; {SHAPES}")),
                }
                continue;
            };
            if name != "path"
                && let Some(file) = fields.get(name).cloned()
            {
                fields.insert("path".to_owned(), file);
            }
        }
        lines.add(place, fields);
    }
}

/// Videos and their sentences in two lists; the videos may be left out.
fn captioned(mut all: Map<String, Value>, how: &Reading, lines: &mut Lines<'_>) {
    let mut captions: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (number, sentence) in objects(&mut all, "sentences", lines) {
        match (sentence.get("video_id").and_then(id), sentence.get("caption")) {
            (Some(id), Some(caption)) => captions.entry(id).or_default().push(caption.clone()),
            _ => {
                let place = format!("sentence {number}");
                lines.problem(place, "it needs `video_id` and `caption`");
            }
        }
    }
    if !all.contains_key("videos") {
        for (id, said) in captions {
            let place = format!("video `{id}`");
            lines.add(place, video(id, Map::new(), said, how));
        }
        return;
    }
    for (number, fields) in objects(&mut all, "videos", lines) {
        let place = format!("video {number}");
        match fields.get("video_id").and_then(id) {
            None => lines.problem(place, "it needs `video_id`"),
            Some(id) => {
                let said = captions.remove(&id).unwrap_or_default();
                lines.add(place, video(id, fields, said, how));
            }
        }
    }
    for id in captions.into_keys() {
        lines.problem(format!("video `{id}`"), "it has sentences, but `videos` does not list it");
    }
}

/// The fields of a video with its captions. An id without an extension is a file `ID.mp4`, unless a
/// suffix is given.
fn video(
    id: String,
    mut fields: Map<String, Value>,
    said: Vec<Value>,
    how: &Reading,
) -> Map<String, Value> {
    let bare = how.suffix.is_empty() && Path::new(&id).extension().is_none();
    let file = if bare { format!("{id}.mp4") } else { id };
    fields.insert("path".to_owned(), Value::from(file));
    fields.insert("captions".to_owned(), Value::from(said));
    fields
}

/// The objects of a list; anything else in it is a problem.
fn objects(
    all: &mut Map<String, Value>,
    name: &str,
    lines: &mut Lines<'_>,
) -> Vec<(usize, Map<String, Value>)> {
    let Some(Value::Array(items)) = all.get_mut(name).map(Value::take) else {
        lines.problem(1, &format!("`{name}` is no list"));
        return Vec::new();
    };
    let mut found = Vec::with_capacity(items.len());
    for (number, item) in items.into_iter().enumerate() {
        match item {
            Value::Object(fields) => found.push((number, fields)),
            _ => lines.problem(format!("`{name}` {number}"), "not an object"),
        }
    }
    found
}

/// An id, which may be a number.
fn id(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, how: &Reading) -> Result<Manifest, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list.json");
        std::fs::write(&file, text).unwrap();
        Manifest::read(&file, how).map_err(|error| error.to_string())
    }

    fn ids(manifest: &Manifest) -> Vec<&str> {
        manifest.entries.iter().map(|entry| entry.id.as_str()).collect()
    }

    #[test]
    fn published_shapes_become_records() {
        let how = Reading { prefix: "videos/".to_owned(), ..Reading::default() };
        let llava = r#"[
            {"id": "1", "video": "a.mp4", "conversations": [{"from": "human", "value": "?"}]},
            {"id": "2", "image": "b.jpg", "conversations": []},
            {"id": "3", "conversations": [{"from": "human", "value": "no picture"}]}]"#;
        let found = read(llava, &how).unwrap();
        assert_eq!((ids(&found), found.unseen), (vec!["a.mp4", "b.jpg"], 1));
        assert!(found.entries[0].media.file.ends_with("videos/a.mp4"));
        assert!(found.entries[0].record.get("conversations.0.value").is_some());
        let chat =
            r#"[{"video": "a", "QA": [{"i": "look", "q": "?", "a": "it"}], "start": "0:01"}]"#;
        let how = Reading { suffix: ".webm".to_owned(), ..Reading::default() };
        let found = read(chat, &how).unwrap();
        assert!(found.entries[0].media.file.ends_with("a.webm"));
        assert_eq!(found.entries[0].start, Some(1.0));
        let msrvtt = r#"{"info": {}, "videos": [
            {"video_id": "video0", "split": "train", "category": 9},
            {"video_id": "video1", "split": "validate"}], "sentences": [
            {"video_id": "video0", "sen_id": 0, "caption": "a car"},
            {"video_id": "video0", "sen_id": 1, "caption": "a red car"}]}"#;
        let found = read(msrvtt, &Reading::of_split("train")).unwrap();
        assert_eq!(ids(&found), ["video0.mp4"]);
        assert_eq!(found.entries[0].record.texts("captions").unwrap(), ["a car", "a red car"]);
        assert_eq!(found.entries[0].record.integer("category"), Some(9));
        let alone = r#"{"sentences": [{"video_id": 7, "caption": "a"}]}"#;
        assert_eq!(ids(&read(alone, &Reading::default()).unwrap()), ["7.mp4"]);
    }

    #[test]
    fn other_shapes_say_what_is_known_and_where() {
        for (text, part) in [
            ("{oops", "list.json:1: not JSON"),
            ("{}", "an object with nothing; known are"),
            (r#"{"data": []}"#, "an object with `data`; known are"),
            ("3", "neither a list nor an object"),
            (r#"[{"video": "a.mp4"}, 3]"#, "entry 1: not an object"),
            (r#"[{"file": "a.mp4"}]"#, "entry 0: no file; known are"),
            (r#"[{"video": ["a.mp4"]}]"#, "entry 0: `path` is [\"a.mp4\"], not a text"),
            (r#"{"sentences": 3, "videos": []}"#, "`sentences` is no list"),
            (r#"{"sentences": [{"caption": "a"}]}"#, "sentence 0: it needs"),
            (
                r#"{"sentences": [{"video_id": "v", "caption": "a"}], "videos": []}"#,
                "video `v`: it has sentences",
            ),
        ] {
            let error = read(text, &Reading::default()).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
