//! Two kinds of drawing as SVG: bars with their spread, and lines over categories.

use std::fmt::Write;

const WIDTH: f64 = 900.0;
const INK: &str = "#212529";
const FAINT: &str = "#ced4da";

/// One bar.
pub struct Bar {
    pub label: String,
    pub low: f64,
    pub value: f64,
    pub high: f64,
    pub is_good: bool,
}

/// One line.
pub struct Line {
    pub name: &'static str,
    pub colour: &'static str,
    pub points: Vec<(String, f64)>,
}

/// A drawing under way. Writing into a `String` cannot fail.
struct Drawing(String);

impl Drawing {
    fn new(title: &str, height: f64) -> Self {
        let mut drawing = Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        ));
        drawing.text(16.0, 26.0, "start", INK, title);
        drawing
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, colour: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>"
        );
    }

    fn stroke(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.0,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
        );
    }

    fn block(&mut self, x: f64, y: f64, width: f64, height: f64, colour: &str) {
        let _ = writeln!(
            self.0,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
        );
    }

    fn done(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

/// Bars from zero to three; what is beyond is cut, for beyond what was to be reached it matters little.
pub fn bars(title: &str, bars: &[Bar]) -> String {
    const MOST: f64 = 3.0;
    const ROW: f64 = 26.0;
    let (left, right) = (400.0, WIDTH - 60.0);
    let bottom = 48.0 + ROW * bars.len() as f64;
    let x = |value: f64| left + value.clamp(0.0, MOST) / MOST * (right - left);
    let mut drawing = Drawing::new(title, bottom + 30.0);
    for mark in [0.0, 1.0, 2.0, 3.0] {
        let (colour, width) = if mark == 1.0 { (INK, 1.5) } else { (FAINT, 1.0) };
        drawing.stroke((x(mark), 40.0), (x(mark), bottom), colour, width);
        drawing.text(x(mark), bottom + 18.0, "middle", INK, &format!("{mark}"));
    }
    for (bar, row) in bars.iter().zip(0u32..) {
        let y = 48.0 + ROW * f64::from(row);
        drawing.text(left - 10.0, y + 13.0, "end", INK, &bar.label);
        let colour = if bar.is_good { "#66a80f" } else { "#e8590c" };
        drawing.block(x(0.0), y, x(bar.value) - x(0.0), 17.0, colour);
        drawing.stroke((x(bar.low), y + 8.5), (x(bar.high), y + 8.5), INK, 1.5);
        drawing.text(x(bar.value.max(bar.high)) + 6.0, y + 13.0, "start", INK, &format!("{:.2}", bar.value));
    }
    drawing.done()
}

/// Lines over the same categories, from zero.
pub fn lines(title: &str, lines: &[Line]) -> String {
    let (left, right, top, bottom) = (60.0, WIDTH - 40.0, 50.0, 380.0);
    let categories: Vec<&str> = lines
        .iter()
        .max_by_key(|line| line.points.len())
        .map(|line| line.points.iter().map(|(name, _)| name.as_str()).collect())
        .unwrap_or_default();
    let most = lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value).fold(1.0, f64::max);
    let step =
        [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0].into_iter().find(|step| most / step <= 8.0).unwrap_or(200.0);
    let x = |name: &str| {
        let at = categories.iter().position(|category| *category == name).unwrap_or(0);
        left + (at as f64 + 0.5) * (right - left) / categories.len().max(1) as f64
    };
    let y = |value: f64| bottom - value / (most * 1.08) * (bottom - top);
    let mut drawing = Drawing::new(title, bottom + 40.0 + 20.0 * lines.len() as f64);
    let mut mark = 0.0;
    while mark <= most {
        drawing.stroke((left, y(mark)), (right, y(mark)), FAINT, 1.0);
        drawing.text(left - 8.0, y(mark) + 4.0, "end", INK, &format!("{mark}"));
        mark += step;
    }
    for name in &categories {
        drawing.text(x(name), bottom + 20.0, "middle", INK, name);
    }
    for (line, row) in lines.iter().zip(0u32..) {
        for pair in line.points.windows(2) {
            let [(a, from), (b, to)] = pair else { continue };
            drawing.stroke((x(a), y(*from)), (x(b), y(*to)), line.colour, 2.5);
        }
        for (name, value) in &line.points {
            drawing.block(x(name) - 3.5, y(*value) - 3.5, 7.0, 7.0, line.colour);
            drawing.text(x(name), y(*value) - 9.0, "middle", line.colour, &format!("{value:.0}"));
        }
        let legend = bottom + 46.0 + 20.0 * f64::from(row);
        drawing.block(left, legend - 10.0, 12.0, 12.0, line.colour);
        drawing.text(left + 20.0, legend, "start", INK, line.name);
    }
    drawing.done()
}
