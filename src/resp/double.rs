//! Doubles as Redis prints them in replies: C's `%.17g`, and for coordinates `%.17f`.

/// `%.17g`: 17 significant digits without trailing zeros, in scientific form for exponents below -4
/// or above 16. Infinity is `inf` or `-inf`, not a number is `nan`.
pub fn format_double(value: f64) -> String {
    const DIGITS: i32 = 17;
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{value:.*e}", DIGITS as usize - 1);
    let (mantissa, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a small integer");
    if (-4..DIGITS).contains(&exponent) {
        let decimals = (DIGITS - 1 - exponent) as usize;
        trim_zeros(&format!("{value:.decimals$}")).into()
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trim_zeros(mantissa), exponent.abs())
    }
}

/// `%.17f` without trailing zeros, for finite numbers.
pub fn format_decimal(value: f64) -> String {
    trim_zeros(&format!("{value:.17}")).into()
}

fn trim_zeros(number: &str) -> &str {
    if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the C library prints, which is what Redis sends.
    fn c_library(value: f64) -> String {
        printed(c"%.17g", value)
    }

    fn printed(format: &std::ffi::CStr, value: f64) -> String {
        let mut text = [0u8; 64];
        // SAFETY: the format takes one double and writes at most the given size, NUL included.
        let len = unsafe { libc::snprintf(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), value) };
        String::from_utf8_lossy(&text[..len as usize]).into_owned()
    }

    #[test]
    fn as_c_prints_them() {
        let halfway = 2f64.powi(50) + 0.25; // 18 digits that end in 5: rounds to even
        let edges = [
            0.0, -0.0, 1.0, -1.0, 3.0, 0.1, 0.2, 1.5, 1e16, 1e17, 1e-4, 1e-5, 1e100, 1e-100, halfway,
        ];
        let more = [
            halfway + 0.5,
            99999999999999999.0,
            1e17f64.next_down(),
            f64::MAX,
            f64::MIN_POSITIVE,
            5e-324,
        ];
        for value in edges.into_iter().chain(more) {
            assert_eq!(format_double(value), c_library(value), "{value:e}");
        }
        assert_eq!(format_double(0.1), "0.10000000000000001");
        assert_eq!(format_double(1e17), "1e+17");
        assert_eq!(format_double(f64::INFINITY), "inf");
        assert_eq!(format_double(f64::NEG_INFINITY), "-inf");
        assert_eq!(format_double(-f64::NAN), "nan");
    }

    proptest! {
        #![proptest_config(crate::resp::test_cases())]

        #[test]
        fn any_double(value in any::<f64>().prop_filter("finite", |value| value.is_finite())) {
            prop_assert_eq!(format_double(value), c_library(value));
        }

        #[test]
        fn coordinates(value in -180.0..=180.0, place in 0u32..1 << 26) {
            // Those of a grid of halves end with a 5 that may have to be rounded.
            for value in [value, f64::from(place) / f64::from(1 << 18)] {
                let expected = printed(c"%.17f", value);
                prop_assert_eq!(format_decimal(value), trim_zeros(&expected));
            }
        }

        #[test]
        fn decimals(digits in -100_000_000i64..100_000_000, scale in 0i32..20) {
            let value = digits as f64 / 10f64.powi(scale);
            prop_assert_eq!(format_double(value), c_library(value));
        }
    }
}
