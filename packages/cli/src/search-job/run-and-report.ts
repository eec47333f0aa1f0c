import { renderReport } from "@coppice/report";
import { type JobResult, runJob } from "./run-job.js";
import type { SearchRun } from "./search-job.js";
import { searchReport } from "./search-report.js";
import { searchResult } from "./search-result.js";

export interface ReportedRun {
  readonly result: JobResult;
  /** What result.json holds. */
  readonly data: ReturnType<typeof searchResult>;
  /** Paths of what was written. */
  readonly report: string;
  readonly planFile: string;
}

/** Runs a job to its end and writes result.json and report.html beside its plan. */
export async function runAndReport(run: SearchRun, command: string): Promise<ReportedRun> {
  const started = performance.now();
  const { job, folder, emitter } = run;
  const result = await runJob(run);
  const seconds = (performance.now() - started) / 1000;
  const data = searchResult(job, result, seconds);
  const report = await folder.write(
    "report.html",
    renderReport(searchReport({ job, result, seconds, command })),
  );
  await folder.writeJson("result.json", data);
  emitter.notify("artifact", { kind: "report", path: report });
  return { result, data, report, planFile: `${folder.path}/plan.json` };
}
