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
pub mod internvideo_next;
pub mod modern_bert;
pub mod multiblock;
pub mod network;
pub mod optimizer;
pub mod preprocess;
pub mod report;
pub mod teachers;
pub mod vjepa2;

use std::path::Path;

use report::Report;

/// Fixtures that must be handled, sorted.
pub const KNOWN: [&str; 18] = [
    "adamw_cosine",
    "diffusion_cosine",
    "internvideo2_ap",
    "internvideo2_attention_mask",
    "internvideo2_cls",
    "internvideo2_mae_teacher",
    "internvideo2_pretrain",
    "internvideo_next_stage1",
    "internvideo_next_stage2",
    "internvl_clip_teacher",
    "mar_diffloss",
    "modernbert",
    "multiblock_masks",
    "preprocess",
    "videomaev2_finetune",
    "videomaev2_pretrain",
    "vjepa2",
    "vjepa2_loss",
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
        "internvideo_next_stage1" => internvideo_next::check_stage1(folder),
        "internvideo_next_stage2" => internvideo_next::check_stage2(folder),
        "internvl_clip_teacher" => teachers::check_internvl(folder),
        "mar_diffloss" => diffusion::check_mar(folder),
        "modernbert" => modern_bert::check(folder),
        "multiblock_masks" => multiblock::check(folder),
        "preprocess" => Report::of_problems(folder, preprocess::check(folder).err()),
        "videomaev2_finetune" => teachers::check_finetune(folder),
        "videomaev2_pretrain" => autoencoder::check(folder),
        "vjepa2" => vjepa2::check(folder),
        "vjepa2_loss" => vjepa2::check_loss(folder),
        _ => return None,
    })
}
