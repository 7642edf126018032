//! Medians, ratios and means.

/// Which way a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Seconds; less is better.
    Time,
    /// Bytes per second; more is better.
    Throughput,
    /// Seconds that others wait longer, asked for as they are; less is better.
    Latency,
}

impl Measure {
    /// The figure of `ours` as a multiple of the reference's: time for time, throughput for throughput.
    pub(crate) fn ratio(self, ours: f64, reference: f64) -> Option<f64> {
        (reference > 0.0 && ours.is_finite()).then_some(ours / reference)
    }

    /// Whether a figure, or a ratio of such figures, is within a bound.
    pub(crate) fn reaches(self, figure: f64, bound: f64) -> bool {
        match self {
            Self::Throughput => figure >= bound,
            Self::Time | Self::Latency => figure <= bound,
        }
    }

    /// How many times better `ours` is than `other`.
    pub(crate) fn advantage(self, ours: f64, other: f64) -> Option<f64> {
        match self {
            Self::Throughput => self.ratio(ours, other),
            Self::Time | Self::Latency => self.ratio(other, ours),
        }
    }
}

/// The middle one, or the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The value that `per_mille` of a thousand do not exceed.
pub(crate) fn percentile(values: &[f64], per_mille: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted.get(rank.max(1) - 1).copied()
}

/// The mean of ratios: the root of their product.
pub(crate) fn geometric_mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() || values.iter().any(|v| *v <= 0.0) {
        return None;
    }
    #[allow(clippy::cast_precision_loss)] // A few dozen.
    let count = values.len() as f64;
    Some((values.iter().map(|v| v.ln()).sum::<f64>() / count).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 100.0, 2.0]), Some(3.0));
    }

    #[test]
    fn percentiles() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 990), Some(99.0));
        assert_eq!(percentile(&hundred, 500), Some(50.0));
        assert_eq!(percentile(&[7.0], 990), Some(7.0));
        assert_eq!(percentile(&[], 990), None);
    }

    #[test]
    fn direction_of_ratios() {
        // Twice the time: a ratio of two, half as good, beyond a bound of 1.5.
        assert_eq!(Measure::Time.ratio(2.0, 1.0), Some(2.0));
        assert_eq!(Measure::Time.advantage(2.0, 1.0), Some(0.5));
        assert!(!Measure::Time.reaches(2.0, 1.5));
        // Twice the throughput: a ratio of two, twice as good.
        assert_eq!(Measure::Throughput.ratio(2.0, 1.0), Some(2.0));
        assert_eq!(Measure::Throughput.advantage(2.0, 1.0), Some(2.0));
        assert!(Measure::Throughput.reaches(2.0, 1.5));
        assert!(!Measure::Throughput.reaches(0.4, 0.5));
        assert_eq!(Measure::Time.ratio(2.0, 0.0), None);
    }

    #[test]
    fn geometric_means() {
        let mean = geometric_mean(&[1.0, 4.0, 16.0]);
        assert!(mean.is_some_and(|m| (m - 4.0).abs() < 1e-9));
        assert_eq!(geometric_mean(&[]), None);
        assert_eq!(geometric_mean(&[1.0, 0.0]), None);
    }
}
