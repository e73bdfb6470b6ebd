package report

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// Plots draws everything that was measured into dir, as PNG, and gives the names
// of the files.
func (r *Results) Plots(dir string) (files []string, err error) {
	draw := func(name string, p *plot.Plot, err error) error {
		if err != nil {
			return fmt.Errorf("plot %s: %w", name, err)
		}
		if p == nil {
			return nil
		}
		files = append(files, name+".png")
		return save(filepath.Join(dir, name+".png"), p)
	}
	for _, w := range r.workloads() {
		cells := r.of(w)
		name := fmt.Sprintf("%d-keys-%d-changes", cells[0].Keys, cells[0].Changes)
		p, err := throughput(w, cells)
		if err := draw("throughput-"+name, p, err); err != nil {
			return nil, err
		}
		p, err = staleness(w, cells)
		if err := draw("staleness-"+name, p, err); err != nil {
			return nil, err
		}
	}
	if s := r.Scaling; s != nil {
		for _, each := range []struct {
			name string
			make func() (*plot.Plot, error)
		}{
			{"nodes-last", s.plotLast}, {"nodes-change", s.plotChange}, {"nodes-leases", s.plotLeases},
			{"keys-bytes", s.plotBytes}, {"backlog-memory", s.plotMemory}, {"writers", s.plotWriters},
		} {
			p, err := each.make()
			if err := draw(each.name, p, err); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

func (r *Results) workloads() (all []string) {
	for _, c := range r.Designs {
		if !slices.Contains(all, c.Workload) {
			all = append(all, c.Workload)
		}
	}
	return all
}

func (r *Results) of(workload string) (cells []Cell) {
	for _, c := range r.Designs {
		if c.Workload == workload {
			cells = append(cells, c)
		}
	}
	return cells
}

const (
	width, height = 8 * vg.Inch, 3.6 * vg.Inch
	margin        = vg.Length(8)
)

func save(file string, p *plot.Plot) error {
	// Pixels: texts in SVG are as wide as the reader's own fonts are.
	c := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(120))}
	p.Draw(draw.Crop(draw.New(c), margin, -margin, margin, -margin))
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(f); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func newPlot(title, x, y string) *plot.Plot {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	plotter.DefaultFont = plot.DefaultFont
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding = vg.Points(6)
	p.BackgroundColor = color.White
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.Padding = vg.Points(2)
	return p
}

var (
	ours   = color.RGBA{0x1b, 0x6e, 0xc2, 0xff}
	others = color.RGBA{0x9a, 0xa4, 0xb0, 0xff}
	grid   = color.Gray{0xe4}
)

func colorOf(name string) color.Color {
	if strings.HasPrefix(name, "authfence") {
		return ours
	}
	return others
}

// throughput is bars, the first design on top.
func throughput(workload string, cells []Cell) (*plot.Plot, error) {
	p := newPlot("requests/s, closed loop, "+grouped(workload), "requests/s", "")
	names := make([]string, len(cells))
	for i, c := range cells {
		at := len(cells) - 1 - i
		names[at] = c.Name
		bar, err := plotter.NewBarChart(plotter.Values{c.RPS}, vg.Points(12))
		if err != nil {
			return nil, err
		}
		bar.Horizontal, bar.XMin, bar.Color, bar.LineStyle.Width = true, float64(at), colorOf(c.Name), 0
		label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: c.RPS, Y: float64(at)}}, Labels: []string{" " + thousands(c.RPS)}})
		if err != nil {
			return nil, err
		}
		label.TextStyle[0].YAlign = -.5
		p.Add(bar, label)
	}
	p.NominalY(names...)
	p.X.Min = 0
	p.X.Max *= 1.12
	p.X.Tick.Marker = grouping{plot.DefaultTicks{}}
	return p, nil
}

// grouping puts commas into the labels of ticks.
type grouping struct{ plot.Ticker }

func (g grouping) Ticks(low, high float64) []plot.Tick {
	ticks := g.Ticker.Ticks(low, high)
	for i := range ticks {
		if v, err := strconv.ParseFloat(ticks[i].Label, 64); err == nil && (v >= 1000 || v == 0) {
			ticks[i].Label = grouped(fmt.Sprintf("%.0f", v))
		}
	}
	return ticks
}

// spans are ticks of an axis of milliseconds.
type spans struct{}

func (spans) Ticks(low, high float64) (all []plot.Tick) {
	for _, v := range []float64{.1, 1, 10, 100, 1e3, 1e4, 6e4, 36e5} {
		if v >= low*.99 && v <= high*1.01 {
			all = append(all, plot.Tick{Value: v, Label: map[float64]string{
				.1: "0.1 ms", 1: "1 ms", 10: "10 ms", 100: "100 ms", 1e3: "1 s", 1e4: "10 s", 6e4: "1 min", 36e5: "1 h",
			}[v]})
		}
	}
	return all
}

// The ends of the axis of staleness; what is longer is drawn at its end.
const shortest, longest = .05, 1.2e7

// staleness is a line from the median to the maximum of each design.
func staleness(workload string, cells []Cell) (*plot.Plot, error) {
	p := newPlot("staleness after a revocation: median, p99, maximum; "+grouped(workload), "", "")
	names := make([]string, len(cells))
	any := false
	for i, c := range cells {
		at := len(cells) - 1 - i
		names[at] = c.Name
		if c.Staleness == nil {
			continue
		}
		any = true
		clip := func(ms float64) float64 { return min(longest, max(shortest, ms)) }
		y := float64(at)
		line, err := plotter.NewLine(plotter.XYs{{X: clip(c.Staleness.P50), Y: y}, {X: clip(c.Staleness.Max), Y: y}})
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = colorOf(c.Name), vg.Points(2)
		points, err := plotter.NewScatter(plotter.XYs{{X: clip(c.Staleness.P50), Y: y}, {X: clip(c.Staleness.P99), Y: y}, {X: clip(c.Staleness.Max), Y: y}})
		if err != nil {
			return nil, err
		}
		points.GlyphStyleFunc = func(i int) draw.GlyphStyle {
			return draw.GlyphStyle{Color: colorOf(c.Name), Radius: vg.Points(3.5), Shape: []draw.GlyphDrawer{draw.CircleGlyph{}, draw.CircleGlyph{}, draw.BoxGlyph{}}[i]}
		}
		text := " " + Span(c.Staleness.Max)
		if c.NeverEvicted > 0 {
			text += fmt.Sprintf(" (%d never evicted)", c.NeverEvicted)
		}
		label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: clip(c.Staleness.Max) * 1.1, Y: y}}, Labels: []string{text}})
		if err != nil {
			return nil, err
		}
		label.TextStyle[0].YAlign = -.5
		p.Add(line, points, label)
	}
	if !any {
		return nil, nil
	}
	p.NominalY(names...)
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, spans{}
	p.X.Min, p.X.Max = shortest/2, longest*60
	return p, nil
}

// series is one line of a plot.
type series struct {
	name string
	xys  plotter.XYs
}

// lines draws series.
func lines(p *plot.Plot, all ...series) (*plot.Plot, error) {
	g := plotter.NewGrid()
	g.Vertical.Color, g.Horizontal.Color = grid, grid
	p.Add(g)
	for i, s := range all {
		line, points, err := plotter.NewLinePoints(s.xys)
		if err != nil {
			return nil, err
		}
		line.Color, points.Color = plotutil.Color(i), plotutil.Color(i)
		line.Width, points.Shape, points.Radius = vg.Points(1.5), plotutil.Shape(i), vg.Points(3)
		p.Add(line, points)
		p.Legend.Add(s.name, line, points)
	}
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		if _, log := axis.Scale.(plot.LogScale); log && axis.Min == axis.Max { // one point makes no axis
			axis.Min, axis.Max = axis.Min/2, axis.Max*2
		}
	}
	return p, nil
}

func logX(p *plot.Plot) {
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, grouping{plot.LogTicks{Prec: -1}}
}

func logY(p *plot.Plot) {
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, grouping{plot.LogTicks{Prec: -1}}
}

func xys[T any](points []T, x, y func(T) float64) plotter.XYs {
	all := make(plotter.XYs, len(points))
	for i, p := range points {
		all[i].X, all[i].Y = x(p), y(p)
	}
	return all
}

func byNodes(p NodesPoint) float64 { return float64(p.Nodes) }

func (s *Scaling) plotLast() (*plot.Plot, error) {
	if len(s.Nodes) == 0 {
		return nil, nil
	}
	p := newPlot("commit to gone on the last node", "nodes", "ms")
	logX(p)
	logY(p)
	return lines(p,
		series{"p50", xys(s.Nodes, byNodes, func(p NodesPoint) float64 { return p.LastP50 })},
		series{"p99", xys(s.Nodes, byNodes, func(p NodesPoint) float64 { return p.LastP99 })})
}

func (s *Scaling) plotChange() (*plot.Plot, error) {
	if len(s.Nodes) == 0 {
		return nil, nil
	}
	p := newPlot("what a change costs the listener", "nodes", "CPU µs a change")
	logX(p)
	p, err := lines(p, series{"listener", xys(s.Nodes, byNodes, func(p NodesPoint) float64 { return p.ListenerPerChange })})
	if err == nil {
		p.Y.Min, p.Y.Max = 0, 1.6*p.Y.Max
	}
	return p, err
}

func (s *Scaling) plotLeases() (*plot.Plot, error) {
	if len(s.Nodes) == 0 {
		return nil, nil
	}
	p := newPlot("what leases cost, without changes", "nodes", "cores")
	logX(p)
	logY(p)
	return lines(p,
		series{"listener", xys(s.Nodes, byNodes, func(p NodesPoint) float64 { return max(1e-4, p.ListenerIdleCPU) })},
		series{"NATS", xys(s.Nodes, byNodes, func(p NodesPoint) float64 { return max(1e-4, p.NATSIdleCPU) })})
}

func (s *Scaling) plotBytes() (*plot.Plot, error) {
	p := newPlot("memory of a node", "keys", "bytes")
	logX(p)
	if len(s.Keys) == 0 {
		return nil, nil
	}
	many := slices.DeleteFunc(slices.Clone(s.Keys), func(k KeysPoint) bool { return k.Keys < 1000 }) // below, what is there once is all there is
	by := func(k KeysPoint) float64 { return float64(k.Keys) }
	p, err := lines(p,
		series{"an entry in L1", xys(many, by, func(k KeysPoint) float64 { return k.EntryBytes })},
		series{"a floor", xys(many, by, func(k KeysPoint) float64 { return k.FloorBytes })})
	if err == nil {
		p.Y.Min, p.Y.Max = 0, 1.4*p.Y.Max
	}
	return p, err
}

func (s *Scaling) plotMemory() (*plot.Plot, error) {
	if s.Backlog == nil {
		return nil, nil
	}
	p := newPlot(fmt.Sprintf("the listener while it drains %s changes", grouped(strconv.Itoa(s.Backlog.Changes))), "seconds", "")
	rss, left := make(plotter.XYs, len(s.Backlog.At)), make(plotter.XYs, len(s.Backlog.At))
	for i, at := range s.Backlog.At {
		rss[i], left[i] = plotter.XY{X: at, Y: s.Backlog.RSS[i]}, plotter.XY{X: at, Y: s.Backlog.Left[i] / 10_000}
	}
	p, err := lines(p, series{"memory of the process, MB", rss}, series{"changes left, in 10,000", left})
	if err == nil {
		p.Y.Min, p.Legend.Left = 0, false
	}
	return p, err
}

func (s *Scaling) plotWriters() (*plot.Plot, error) {
	if len(s.Writers) == 0 {
		return nil, nil
	}
	p := newPlot("saturating writers of a watched column, as a share of the unwatched table", "writers", "share")
	logX(p)
	by := func(w WritersPoint) float64 { return float64(w.Writers) }
	p, err := lines(p,
		series{"authfence", xys(s.Writers, by, func(w WritersPoint) float64 { return w.On })},
		series{"authfence, notify: off", xys(s.Writers, by, func(w WritersPoint) float64 { return w.Off })},
		series{"a trigger that notifies each commit", xys(s.Writers, by, func(w WritersPoint) float64 { return w.Always })})
	if err == nil {
		p.Y.Min, p.Y.Max, p.Legend.Left = 0, 1.15, false
	}
	return p, err
}
