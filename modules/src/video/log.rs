//! What FFmpeg logs: often the only sign of damage, since decoders paint over what they cannot read.

use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::sync::Once;

use ffmpeg_next::ffi;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::named::one_line;

/// Who wrote a line of FFmpeg's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A demuxer: the file's structure.
    Container,
    /// Anything, demuxers too.
    Any,
}

/// The first error-level lines FFmpeg logged on this thread since [`quiet`].
struct Complaints {
    any: String,
    container: String,
}

thread_local! {
    static COMPLAINTS: RefCell<Complaints> =
        const { RefCell::new(Complaints { any: String::new(), container: String::new() }) };
}

/// Silences FFmpeg's own log; errors of the calling thread are kept for [`message`] and
/// [`complaint`], and those kept so far are dropped.
pub(crate) fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| unsafe {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        ffi::av_log_set_callback(Some(keep_complaint));
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        ffi::av_log_set_level(ffi::AV_LOG_QUIET);
    });
    COMPLAINTS.with_borrow_mut(|kept| {
        kept.any.clear();
        kept.container.clear();
    });
}

/// Takes the first error that was logged since [`quiet`] or the last take.
pub(crate) fn complaint(source: Source) -> Option<String> {
    let line = COMPLAINTS.with_borrow_mut(|kept| match source {
        Source::Container => std::mem::take(&mut kept.container),
        Source::Any => std::mem::take(&mut kept.any),
    });
    (!line.is_empty()).then_some(line)
}

/// What FFmpeg said about a failed call: its log line where it wrote one, and the code's text.
pub(crate) fn message(code: i32) -> String {
    let complaint = complaint(Source::Any);
    let mut text = [0 as c_char; 128];
    let text = unsafe {
        ffi::av_strerror(code, text.as_mut_ptr(), text.len());
        CStr::from_ptr(text.as_ptr()).to_string_lossy().to_lowercase()
    };
    complaint.map_or_else(|| text.clone(), |complaint| format!("{text} ({complaint})"))
}

/// Who logs, by the class of its object; `None` for a parser, whose context has no codec: it guesses
/// where packets begin, and the decoder sees the same bytes later.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
unsafe fn source(object: *mut std::ffi::c_void) -> Option<Source> {
    if object.is_null() {
        return Some(Source::Any);
    }
    // Every object that logs begins with a pointer to its class.
    let class = unsafe { *object.cast::<*const ffi::AVClass>() };
    if class.is_null() || unsafe { (*class).class_name }.is_null() {
        return Some(Source::Any);
    }
    match unsafe { CStr::from_ptr((*class).class_name) }.to_bytes() {
        b"AVFormatContext" => Some(Source::Container),
        b"AVCodecContext" if unsafe { (*object.cast::<ffi::AVCodecContext>()).codec }.is_null() => {
            None
        }
        _ => Some(Source::Any),
    }
}

/// The C type of the last argument differs between targets, hence the `cfg`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
unsafe extern "C" fn keep_complaint(
    object: *mut std::ffi::c_void,
    level: i32,
    format: *const c_char,
    arguments: *mut ffi::__va_list_tag,
) {
    if level > ffi::AV_LOG_ERROR {
        return;
    }
    let Some(source) = (unsafe { source(object) }) else { return };
    let mut line = [0 as c_char; 256];
    let mut prefix = 0;
    let text = unsafe {
        let (to, size) = (line.as_mut_ptr(), line.len() as i32);
        ffi::av_log_format_line2(object, level, format, arguments, to, size, &mut prefix);
        CStr::from_ptr(line.as_ptr()).to_string_lossy().into_owned()
    };
    let text = one_line(text.trim());
    let _ = COMPLAINTS.try_with(|kept| {
        let Ok(mut kept) = kept.try_borrow_mut() else { return };
        if source == Source::Container && kept.container.is_empty() {
            kept.container.clone_from(&text);
        }
        if kept.any.is_empty() {
            kept.any = text;
        }
    });
}
