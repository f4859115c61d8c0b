use super::*;

#[test]
fn the_same_size_changes_nothing_and_a_flat_picture_stays_flat() {
    let bytes: Vec<u8> = (0..60).map(|at| (at * 4) as u8).collect();
    let view = View::new(&bytes, 5, 3, Region::whole(4, 5));
    let same = Resizer::new((4, 5), (4, 5), Filter::Bicubic, true);
    assert_eq!(same.rounded(view), bytes);
    assert_eq!(same.native(view), bytes);
    let flat = vec![77; 60];
    let view = View::new(&flat, 5, 3, Region::whole(4, 5));
    for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic] {
        for antialias in [false, true] {
            let other = Resizer::new((4, 5), (9, 2), filter, antialias);
            assert_eq!(other.rounded(view), vec![77; 54], "{filter:?} {antialias}");
            assert_eq!(other.native(view), vec![77; 54], "{filter:?} {antialias}");
        }
    }
}

#[test]
fn what_lies_between_two_bytes_is_decided_in_f64() {
    let bytes: Vec<u8> = (0..13 * 11 * 3).map(|at| (at * 37 % 251) as u8).collect();
    let view = View::new(&bytes, 11, 3, Region::whole(13, 11));
    let resizer = Resizer::new((13, 11), (7, 19), Filter::Bicubic, true);
    for (at, value) in resizer.float(view).into_iter().enumerate() {
        assert!((f64::from(value) - resizer.exact(view, at)).abs() < 1e-4);
    }
}

#[test]
fn a_window_is_the_same_part_of_the_whole_result() {
    let bytes: Vec<u8> = (0..13 * 11 * 3).map(|at| (at * 37 % 251) as u8).collect();
    let view = View::new(&bytes, 11, 3, Region::whole(13, 11));
    let whole = Resizer::new((13, 11), (7, 19), Filter::Bicubic, true);
    let part = Region { top: 2, left: 5, height: 3, width: 8 };
    let cut = whole.clone().window(part).float(view);
    let full = whole.float(view);
    for row in 0..3 {
        let at = ((row + 2) * 19 + 5) * 3;
        assert_eq!(cut[row * 24..(row + 1) * 24], full[at..at + 24]);
    }
}
