//! A decoded picture as RGB bytes in display orientation.
//!
//! Colour rule: the stream's matrix and range where it states them, else BT.601 and limited range
//! (`yuvj` formats: full range), whatever the picture's size. This is what `ffmpeg` itself does.
//! Pixels are taken as square; a frame with another size than the stream's is scaled to it.

use std::ptr::{self, NonNull};

use ffmpeg_next::ffi;

use super::libav::Frame;

/// How stored rows and columns become displayed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Orientation {
    /// Rows become columns.
    transpose: bool,
    /// Displayed columns run against their stored axis.
    flip_columns: bool,
    /// Displayed rows run against their stored axis.
    flip_rows: bool,
}

impl Orientation {
    /// The nearest multiple of 90 degrees, with mirroring, of a stream's display matrix.
    pub(crate) fn of(stream: *const ffi::AVStream) -> Self {
        let mut size = 0;
        let kind = ffi::AVPacketSideDataType::AV_PKT_DATA_DISPLAYMATRIX;
        let data = unsafe { ffi::av_stream_get_side_data(stream, kind, &mut size) };
        if data.is_null() || size < 36 {
            return Self::default();
        }
        let read = |at: usize| unsafe { data.cast::<i32>().add(at).read_unaligned() };
        Self::from_matrix(read(0), read(1), read(3), read(4))
    }

    /// A stored point (p, q) is shown at (a·p + c·q, b·p + d·q).
    fn from_matrix(a: i32, b: i32, c: i32, d: i32) -> Self {
        let straight = a.unsigned_abs().max(d.unsigned_abs());
        let turned = b.unsigned_abs().max(c.unsigned_abs());
        if turned > straight {
            Self { transpose: true, flip_columns: c < 0, flip_rows: b < 0 }
        } else {
            Self { transpose: false, flip_columns: a < 0, flip_rows: d < 0 }
        }
    }

    /// Displayed (height, width) of a stored (height, width).
    pub(crate) fn display(&self, height: usize, width: usize) -> (usize, usize) {
        if self.transpose { (width, height) } else { (height, width) }
    }

    /// Copies stored RGB pixels into `shown`.
    fn place(&self, stored: &[u8], stored_width: usize, shown: &mut [u8], size: (usize, usize)) {
        let (height, width) = size;
        for row in 0..height {
            let y = if self.flip_rows { height - 1 - row } else { row };
            let line = &mut shown[row * width * 3..(row + 1) * width * 3];
            for (column, pixel) in line.chunks_exact_mut(3).enumerate() {
                let x = if self.flip_columns { width - 1 - column } else { column };
                let at = if self.transpose { x * stored_width + y } else { y * stored_width + x };
                pixel.copy_from_slice(&stored[at * 3..at * 3 + 3]);
            }
        }
    }
}

/// Turns frames of one stream into RGB, keeping FFmpeg's scaler between frames.
pub(crate) struct Converter {
    scaler: Option<(NonNull<ffi::SwsContext>, [i32; 5])>,
    orientation: Orientation,
    /// Stored rows and columns of the result.
    height: usize,
    width: usize,
    /// Rows padded to what FFmpeg's vector code may write.
    padded: Vec<u8>,
    stored: Vec<u8>,
}

unsafe impl Send for Converter {}

impl Converter {
    /// A converter to `height` x `width` stored pixels.
    pub(crate) fn new(height: usize, width: usize, orientation: Orientation) -> Self {
        let (padded, stored) = (Vec::new(), Vec::new());
        Self { scaler: None, orientation, height, width, padded, stored }
    }

    /// Writes the displayed RGB bytes of a frame.
    pub(crate) fn convert(&mut self, frame: &Frame, rgb: &mut [u8]) -> Result<(), String> {
        let scaler = self.scaler(frame)?;
        // FFmpeg's vector code leaves the last columns out unless a row has room for whole blocks.
        let stride = self.width.next_multiple_of(64) * 3;
        self.padded.resize(stride * self.height + 64, 0);
        let data = frame.get();
        let planes = [self.padded.as_mut_ptr(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut()];
        let strides = [stride as i32, 0, 0, 0];
        let rows = unsafe {
            ffi::sws_scale(
                scaler.as_ptr(),
                data.data.as_ptr().cast(),
                data.linesize.as_ptr(),
                0,
                data.height,
                planes.as_ptr(),
                strides.as_ptr(),
            )
        };
        if rows != self.height as i32 {
            return Err("the picture cannot be converted to RGB".to_owned());
        }
        let line = self.width * 3;
        if self.orientation == Orientation::default() {
            for (to, from) in rgb.chunks_exact_mut(line).zip(self.padded.chunks(stride)) {
                to.copy_from_slice(&from[..line]);
            }
            return Ok(());
        }
        self.stored.clear();
        for from in self.padded.chunks(stride).take(self.height) {
            self.stored.extend_from_slice(&from[..line]);
        }
        let size = self.orientation.display(self.height, self.width);
        self.orientation.place(&self.stored, self.width, rgb, size);
        Ok(())
    }

    /// The scaler for this frame's format, made anew when the format changed.
    fn scaler(&mut self, frame: &Frame) -> Result<NonNull<ffi::SwsContext>, String> {
        let data = frame.get();
        // Read as numbers: a damaged stream may hold values that the enums do not name.
        let matrix = unsafe { ptr::addr_of!(data.colorspace).cast::<i32>().read() };
        let range = unsafe { ptr::addr_of!(data.color_range).cast::<i32>().read() };
        let form = [data.format, data.width, data.height, matrix, range];
        if let Some((scaler, known)) = self.scaler
            && known == form
        {
            return Ok(scaler);
        }
        if data.format < 0 || data.width <= 0 || data.height <= 0 {
            return Err("the decoder returned a frame without pixels".to_owned());
        }
        self.free();
        let made = unsafe {
            // The decoder only returns formats of the same library, so the value is one it names.
            let format = std::mem::transmute::<i32, ffi::AVPixelFormat>(data.format);
            ffi::sws_getContext(
                data.width,
                data.height,
                format,
                self.width as i32,
                self.height as i32,
                ffi::AVPixelFormat::AV_PIX_FMT_RGB24,
                ffi::SWS_BICUBIC,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null(),
            )
        };
        let made = NonNull::new(made).ok_or("the pixel format cannot be converted to RGB")?;
        set_colours(made, matrix, range);
        self.scaler = Some((made, form));
        Ok(made)
    }

    fn free(&mut self) {
        if let Some((scaler, _)) = self.scaler.take() {
            unsafe { ffi::sws_freeContext(scaler.as_ptr()) };
        }
    }
}

/// Applies the colour rule of this file.
fn set_colours(scaler: NonNull<ffi::SwsContext>, matrix: i32, range: i32) {
    const UNSPECIFIED: i32 = 2;
    const FULL: i32 = 2;
    let (mut from, mut to) = (ptr::null_mut(), ptr::null_mut());
    let (mut from_full, mut to_full) = (0, 0);
    let (mut brightness, mut contrast, mut saturation) = (0, 0, 0);
    unsafe {
        let code = ffi::sws_getColorspaceDetails(
            scaler.as_ptr(),
            &mut from,
            &mut from_full,
            &mut to,
            &mut to_full,
            &mut brightness,
            &mut contrast,
            &mut saturation,
        );
        if code < 0 {
            return; // An RGB or grey source: there is no matrix to set.
        }
        let stated = if matrix == UNSPECIFIED { ffi::SWS_CS_ITU601 } else { matrix };
        if range != 0 {
            from_full = i32::from(range == FULL);
        }
        ffi::sws_setColorspaceDetails(
            scaler.as_ptr(),
            ffi::sws_getCoefficients(stated),
            from_full,
            to,
            to_full,
            brightness,
            contrast,
            saturation,
        );
    }
}

impl Drop for Converter {
    fn drop(&mut self) {
        self.free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One 2 x 3 picture, its pixels named 0..6.
    fn placed(orientation: Orientation) -> Vec<u8> {
        let stored: Vec<u8> = (0..6u8).flat_map(|pixel| [pixel; 3]).collect();
        let mut shown = vec![0; 18];
        orientation.place(&stored, 3, &mut shown, orientation.display(2, 3));
        shown.chunks(3).map(|pixel| pixel[0]).collect()
    }

    #[test]
    fn the_display_matrix_turns_clockwise_and_mirrors() {
        let one = 65_536;
        assert_eq!(placed(Orientation::from_matrix(one, 0, 0, one)), [0, 1, 2, 3, 4, 5]);
        assert_eq!(placed(Orientation::from_matrix(0, one, -one, 0)), [3, 0, 4, 1, 5, 2]);
        assert_eq!(placed(Orientation::from_matrix(-one, 0, 0, -one)), [5, 4, 3, 2, 1, 0]);
        assert_eq!(placed(Orientation::from_matrix(0, -one, one, 0)), [2, 5, 1, 4, 0, 3]);
        assert_eq!(placed(Orientation::from_matrix(-one, 0, 0, one)), [2, 1, 0, 5, 4, 3]);
    }
}
