// Package report shows a result.Run to people: as a table and a progress
// display on a terminal, as an HTML page that stands alone, as single SVG
// plots, as Markdown, and as a comparison of two runs. It measures nothing.
//
//	run, err := result.Read("build/bench/run.json")
//	if err == nil {
//		err = report.WriteTable(os.Stdout, run, report.Options{Color: report.WantsColor(os.Stdout)})
//	}
//	if err == nil {
//		err = report.WriteHTML(file, run)
//	}
//
// The page has no script, and takes no font, style or picture from elsewhere:
// it can be mailed, printed and opened in ten years. Plots are SVG with real
// text; their colours follow the reader's light or dark mode and are told apart
// by people who don't see red or green, and each curve is named at its end.
package report
