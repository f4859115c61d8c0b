//! Reference data: tiny models with inputs, outputs, losses and gradients of the published code.
//!
//! A fixture is a folder; [`check`] picks the program for it by name. Every size is read from the
//! folder, so other seeds and sizes pass without a change here.

pub mod alignment;
pub mod attention_mask;
pub mod autoencoder;
pub mod diffusion;
pub mod fixture;
pub mod internvideo2;
pub mod language;
pub mod network;
pub mod optimizer;
pub mod preprocess;
pub mod report;
pub mod teachers;

use std::path::Path;

use report::Report;

/// Fixtures that must be handled, sorted.
pub const KNOWN: [&str; 17] = [
    "adamw_cosine",
    "diffusion_cosine",
    "internvideo2_ap",
    "internvideo2_attention_mask",
    "internvideo2_cls",
    "internvideo2_mae_teacher",
    "internvideo2_pretrain",
    "internvl_clip_teacher",
    "llama",
    "llama3_rope",
    "llama_lora",
    "mar_diffloss",
    "mistral",
    "preprocess",
    "qwen2",
    "videomaev2_finetune",
    "videomaev2_pretrain",
];

/// Checks one fixture folder; none when its name belongs to later work.
pub fn check(folder: &Path) -> Option<Report> {
    let name = folder.file_name()?.to_str()?;
    Some(match name {
        "adamw_cosine" => optimizer::check(folder),
        "diffusion_cosine" => diffusion::check_cosine(folder),
        "internvideo2_ap" | "internvideo2_cls" => internvideo2::check_classifier(folder),
        "internvideo2_attention_mask" => attention_mask::check(folder),
        "internvideo2_mae_teacher" => teachers::check_videomae(folder),
        "internvideo2_pretrain" => alignment::check(folder),
        "internvl_clip_teacher" => teachers::check_internvl(folder),
        "llama" | "llama3_rope" | "mistral" | "qwen2" => language::check(folder),
        "llama_lora" => language::check_lora(folder),
        "mar_diffloss" => diffusion::check_mar(folder),
        "preprocess" => Report::of_problems(folder, preprocess::check(folder).err()),
        "videomaev2_finetune" => teachers::check_finetune(folder),
        "videomaev2_pretrain" => autoencoder::check(folder),
        _ => return None,
    })
}
