//! The measurements as a chart.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::results::{Row, Table};

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const WIDTH: i32 = 900;
const LEFT: i32 = 360;
const RIGHT: i32 = 60;
const TOP: i32 = 84;
const BAR: i32 = 18;
const PITCH: i32 = 28;
const GAP: i32 = 14;

const INK: RGBColor = RGBColor(40, 44, 52);
const FAINT: RGBColor = RGBColor(222, 225, 230);
const QUIET: RGBColor = RGBColor(110, 116, 126);
const LIMIT: RGBColor = RGBColor(200, 30, 45);
/// One for each machine.
const COLOURS: [RGBColor; 3] = [
    RGBColor(95, 135, 190),
    RGBColor(60, 160, 130),
    RGBColor(150, 200, 120),
];

/// One bar.
struct Bar<'a> {
    row: &'a Row,
    label: String,
    colour: RGBColor,
    limit: f64,
}

/// Draws how many times as long as the minimal client each kind of work takes.
pub fn draw(path: &Path, tables: &[Table]) -> Result<()> {
    let groups = groups(tables);
    let bars: i32 = groups.iter().map(|(_, bars)| bars.len() as i32).sum();
    let bottom = TOP + bars * PITCH + groups.len() as i32 * GAP;
    let area = SVGBackend::new(path, (WIDTH as u32, (bottom + 48) as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let most = groups
        .iter()
        .flat_map(|(_, bars)| bars)
        .map(|bar| bar.row.times.ratio().max(bar.limit))
        .fold(2.0, f64::max);
    let scale = Scale {
        most: (most * 2.0).floor() / 2.0 + 0.5,
    };

    text(
        &area,
        "qom-fuse beside a minimal QMP client",
        (20, 30),
        20,
        INK,
        HPos::Left,
    )?;
    let subtitle =
        "how many times as long it takes; 1 = the shortest requests, sent one by one, replies thrown away";
    text(&area, subtitle, (20, 54), 13, QUIET, HPos::Left)?;
    axis(&area, &scale, bottom)?;

    let mut y = TOP;
    for (work, bars) in &groups {
        y += GAP / 2;
        let middle = y + bars.len() as i32 * PITCH / 2;
        text(&area, work, (20, middle), 14, INK, HPos::Left)?;
        for bar in bars {
            draw_bar(&area, &scale, bar, y + PITCH / 2)?;
            y += PITCH;
        }
        y += GAP - GAP / 2;
        area.draw(&PathElement::new([(20, y), (WIDTH - RIGHT, y)], FAINT))?;
    }
    area.present()?;
    Ok(())
}

/// The bars of each kind of work.
fn groups(tables: &[Table]) -> Vec<(String, Vec<Bar<'_>>)> {
    let mut groups: Vec<(String, Vec<Bar>)> = Vec::new();
    for (table, colour) in tables.iter().zip(COLOURS) {
        for row in &table.rows {
            let Some(limit) = row.limits.iter().find_map(|limit| limit.ratio) else {
                continue;
            };
            let work = row.work.split(',').next().unwrap_or_default().to_owned();
            let bar = Bar {
                row,
                label: table.short.clone(),
                colour,
                limit,
            };
            match groups.iter_mut().find(|(name, _)| *name == work) {
                Some((_, bars)) => bars.push(bar),
                None => groups.push((work, vec![bar])),
            }
        }
    }
    groups
}

/// From ratios to places; what is beyond the greatest ends there.
struct Scale {
    most: f64,
}

impl Scale {
    fn x(&self, ratio: f64) -> i32 {
        LEFT + (f64::from(WIDTH - LEFT - RIGHT) * ratio.min(self.most) / self.most).round() as i32
    }
}

/// The lines that ratios are read off at, and what the marks mean.
fn axis(area: &Area, scale: &Scale, bottom: i32) -> Result<()> {
    let steps = (scale.most / 0.5).floor() as i32;
    for step in 0..=steps {
        let ratio = f64::from(step) * 0.5;
        let x = scale.x(ratio);
        let colour = if step == 2 { QUIET } else { FAINT };
        area.draw(&PathElement::new([(x, TOP - 4), (x, bottom)], colour))?;
        text(
            area,
            &format!("{ratio}×"),
            (x, bottom + 14),
            12,
            QUIET,
            HPos::Center,
        )?;
    }
    let (x, y) = (20, bottom + 36);
    area.draw(&PathElement::new([(x, y - 7), (x, y + 7)], LIMIT.stroke_width(3)))?;
    text(area, "the limit", (x + 8, y), 12, QUIET, HPos::Left)?;
    let x = x + 90;
    area.draw(&PathElement::new([(x, y), (x + 24, y)], INK))?;
    let meaning = "from the least to the greatest ratio of two runs that followed each other; the bars are ratios of medians";
    text(area, meaning, (x + 32, y), 12, QUIET, HPos::Left)
}

fn draw_bar(area: &Area, scale: &Scale, bar: &Bar, middle: i32) -> Result<()> {
    let ratio = bar.row.times.ratio();
    let (top, bottom) = (middle - BAR / 2, middle + BAR / 2);
    let corners = [(LEFT, top), (scale.x(ratio), bottom)];
    area.draw(&Rectangle::new(corners, bar.colour.filled()))?;
    let (least, most) = bar.row.times.range();
    let whisker = [(scale.x(least), middle), (scale.x(most), middle)];
    area.draw(&PathElement::new(whisker, INK))?;
    for (x, _) in whisker {
        area.draw(&PathElement::new([(x, middle - 3), (x, middle + 3)], INK))?;
    }
    let limit = scale.x(bar.limit);
    let mark = [(limit, top - 3), (limit, bottom + 3)];
    area.draw(&PathElement::new(mark, LIMIT.stroke_width(3)))?;
    text(area, &bar.label, (LEFT - 10, middle), 12, QUIET, HPos::Right)?;
    text(
        area,
        &format!("{ratio:.2}×"),
        (LEFT + 8, middle),
        13,
        WHITE,
        HPos::Left,
    )
}

fn text(area: &Area, words: &str, at: (i32, i32), size: i32, colour: RGBColor, side: HPos) -> Result<()> {
    let style = ("sans-serif", size).into_text_style(area).color(&colour);
    let style = style.pos(Pos::new(side, VPos::Center));
    area.draw_text(words, &style, at)?;
    Ok(())
}
