//! Resizing, cropping and normalising against the numbers of PyTorch, torchvision and Pillow.

use std::path::Path;

use modules::video::Frames;
use modules::video::transform::crop::{centre, short_side, third};
use modules::video::transform::{
    Filter, Normalisation, Plan, Region, Resizer, Rounding, Transform, View,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Sizes and the clip of one fixture.
struct Fixture {
    config: Value,
    meta: Value,
    frames: Frames,
}

type Checked<T> = Result<T, String>;

/// Compares every tensor of a `preprocess` fixture; the first difference is the error.
pub fn check(dir: &Path) -> Checked<()> {
    let read =
        |name: &str| std::fs::read(dir.join(name)).map_err(|error| format!("{name}: {error}"));
    let json = |name: &str| -> Checked<Value> {
        serde_json::from_slice(&read(name)?).map_err(|error| format!("{name}: {error}"))
    };
    let inputs = read("inputs.safetensors")?;
    let frames = frames(&SafeTensors::deserialize(&inputs).map_err(|e| e.to_string())?)?;
    let fixture = Fixture { config: json("config.json")?, meta: json("meta.json")?, frames };
    for file in ["expected.safetensors", "expected_pillow.safetensors"] {
        let bytes = read(file)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| error.to_string())?;
        for name in tensors.names() {
            let tensor = tensors.tensor(name).map_err(|error| error.to_string())?;
            let got = fixture.compute(name).map_err(|error| format!("`{name}`: {error}"))?;
            fixture.compare(name, &tensor, &got).map_err(|error| format!("`{name}`: {error}"))?;
        }
    }
    Ok(())
}

/// `clip_u8` [T, C, H, W] as frames [T, H, W, C].
fn frames(inputs: &SafeTensors<'_>) -> Checked<Frames> {
    let clip = inputs.tensor("clip_u8").map_err(|error| error.to_string())?;
    let &[count, channels, height, width] = clip.shape() else {
        return Err(format!("clip_u8 has shape {:?}", clip.shape()));
    };
    let mut data = Vec::with_capacity(clip.data().len());
    for frame in clip.data().chunks(channels * height * width) {
        for pixel in 0..height * width {
            data.extend((0..channels).map(|channel| frame[channel * height * width + pixel]));
        }
    }
    Ok(Frames { data, count, height, width })
}

impl Fixture {
    fn number(&self, name: &str) -> Checked<usize> {
        let value = self.config[name].as_u64();
        value.map(|value| value as usize).ok_or(format!("config.json lacks `{name}`"))
    }

    fn colours(&self, name: &str) -> Checked<[f32; 3]> {
        let value = self.config[name].clone();
        serde_json::from_value(value).map_err(|error| format!("`{name}`: {error}"))
    }

    /// What this code gives for a tensor of that name, in its layout.
    fn compute(&self, name: &str) -> Checked<Vec<f32>> {
        let (case, detail) = name.split_once('.').ok_or("has no dot")?;
        let frames = &self.frames;
        let short = short_side(frames.height, frames.width, self.number("S")?);
        let whole = Plan::scale(Region::whole(frames.height, frames.width), short);
        let crop = self.number("crop")?;
        let cut = |window: Region| Plan { window, canvas: (window.height, window.width), ..whole };
        let middle = centre(short, (crop, crop)).map_err(|error| error.to_string())?;
        match case {
            "resize" => self.resize(detail),
            "shortside" => Ok(self.levels(&whole)),
            "centercrop" => Ok(self.levels(&cut(middle))),
            "threecrop" => {
                let view = detail.parse().map_err(|_| "has no view number")?;
                Ok(self.levels(&cut(third(short, short.0.min(short.1), view))))
            }
            "pad" => {
                let long = short.0.max(short.1);
                Ok(self.levels(&Plan { canvas: (long, long), ..whole }))
            }
            "rrc" => Ok(self.levels(&self.random_resized()?)),
            "hflip" => Ok(self.levels(&Plan { flip: true, ..self.random_resized()? })),
            "pipeline" | "pipeline_float" => {
                let normalisation = match detail {
                    "imagenet" => Normalisation {
                        mean: self.colours("imagenet_mean")?,
                        std: self.colours("imagenet_std")?,
                    },
                    "clip" => {
                        let (mean, std) = (self.colours("clip_mean")?, self.colours("clip_std")?);
                        Normalisation { mean, std }
                    }
                    _ => Normalisation::HALF,
                };
                let rounding = if case == "pipeline" { Rounding::Once } else { Rounding::Float };
                let transform = Transform { rounding, normalisation, ..Transform::default() };
                Ok(transform.apply_plan(frames, &cut(middle)))
            }
            _ => Err("is not a known case".to_owned()),
        }
    }

    fn random_resized(&self) -> Checked<Plan> {
        let value = self.config["rrc"].clone();
        let [top, left, height, width]: [usize; 4] =
            serde_json::from_value(value).map_err(|error| error.to_string())?;
        let side = self.number("S")?;
        Ok(Plan::scale(Region { top, left, height, width }, (side, side)))
    }

    /// A plan's result as levels 0..255 in [T, C, H, W].
    fn levels(&self, plan: &Plan) -> Vec<f32> {
        let normalisation = Normalisation { mean: [0.0; 3], std: [1.0 / 255.0; 3] };
        let rounding = Rounding::Float;
        let transform = Transform { rounding, normalisation, ..Transform::default() };
        let clip = transform.apply_plan(&self.frames, plan);
        let (count, plane) = (self.frames.count, plan.canvas.0 * plan.canvas.1);
        let mut result = Vec::with_capacity(clip.len());
        for frame in 0..count {
            for channel in 0..3 {
                result.extend_from_slice(&clip[(channel * count + frame) * plane..][..plane]);
            }
        }
        result
    }

    /// `<mode>.<height>x<width>` of the first frame.
    fn resize(&self, detail: &str) -> Checked<Vec<f32>> {
        let (mode, size) = detail.split_once('.').ok_or("has no size")?;
        let (height, width) = size.split_once('x').ok_or("has no size")?;
        let parse = |text: &str| text.parse::<usize>().map_err(|error| error.to_string());
        let to = (parse(height)?, parse(width)?);
        let filter = match mode.trim_start_matches("pil_").split('_').next() {
            Some("nearest") => Filter::Nearest,
            Some("bilinear") => Filter::Bilinear,
            Some("bicubic") => Filter::Bicubic,
            _ => return Err("names no known filter".to_owned()),
        };
        let pillow = mode.starts_with("pil_");
        let frames = &self.frames;
        let from = (frames.height, frames.width);
        let resizer = Resizer::new(from, to, filter, pillow || mode.contains("_aa"));
        let view = View::new(frames.frame(0), from.1, 3, Region::whole(from.0, from.1));
        let values: Vec<f32> = if pillow || mode.ends_with("_u8native") {
            resizer.native(view).into_iter().map(f32::from).collect()
        } else if mode.ends_with("_u8") {
            resizer.rounded(view).into_iter().map(f32::from).collect()
        } else {
            resizer.float(view)
        };
        let channel = |at: usize| values.iter().skip(at).step_by(3).copied();
        Ok((0..3).flat_map(channel).collect())
    }

    fn compare(
        &self,
        name: &str,
        expected: &safetensors::tensor::TensorView<'_>,
        got: &[f32],
    ) -> Checked<()> {
        let bytes = expected.data();
        let exact = expected.dtype() == Dtype::U8;
        let expected: Vec<f32> = match expected.dtype() {
            Dtype::U8 => bytes.iter().map(|&byte| f32::from(byte)).collect(),
            Dtype::F32 => {
                let value = |four: &[u8]| f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                bytes.chunks_exact(4).map(value).collect()
            }
            other => return Err(format!("has dtype {other:?}")),
        };
        if got.len() != expected.len() {
            return Err(format!("{} values, expected {}", got.len(), expected.len()));
        }
        let scale = expected.iter().fold(1.0f32, |most, value| most.max(value.abs()));
        let bound = match exact {
            true if name.contains("pil_") => self.pillow_levels(),
            true => 0.0,
            false if name.starts_with("resize.bicubic.") => 5e-4f32.max(2e-5 * scale),
            false => 2e-5 * scale,
        };
        let difference = |(a, b): (&f32, &f32)| (a - b).abs();
        let worst = got.iter().zip(&expected).map(difference).fold(0.0, f32::max);
        if worst <= bound { Ok(()) } else { Err(format!("differs by {worst}, above {bound}")) }
    }

    /// How far Pillow and the fixed-point resize lie apart, as the fixture states it.
    fn pillow_levels(&self) -> f32 {
        self.meta["u8native_vs_pillow_max_level_diff"].as_f64().unwrap_or(2.0) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_number_is_found() {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/preprocess");
        let to = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
        }
        let file = to.path().join("expected.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 0x41;
        std::fs::write(&file, bytes).unwrap();
        assert!(check(to.path()).unwrap_err().contains("differs by"));
    }
}
