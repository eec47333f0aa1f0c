// Chromium for tests and checks: where it is, and how it is started.
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";

/** Path of a Chromium or Chrome: that of COPPICE_CHROMIUM, or the first that is found; undefined where there is none. */
export function chromiumPath() {
  const names = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome"];
  const folders = (process.env["PATH"] ?? "").split(delimiter);
  const candidates = [
    ...(process.env["COPPICE_CHROMIUM"] ? [process.env["COPPICE_CHROMIUM"]] : []),
    ...names.flatMap((name) => folders.map((folder) => join(folder, name))),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe",
  ];
  return candidates.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** No sandbox where it would need rights of its own, and nothing that looks for a network. */
export const chromiumFlags = [
  ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []),
  "--disable-dev-shm-usage",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/**
 * WebGPU on an adapter in software, which is the same on every machine. Dawn writes the zeros that workgroup memory begins with as a
 * loop: the adapter's own way is an instruction per value, which makes compiling a kernel take seconds.
 */
export const softwareWebgpu = [
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
  "--enable-features=Vulkan",
  "--disable-dawn-features=use_vulkan_zero_initialize_workgroup_memory_extension",
];
