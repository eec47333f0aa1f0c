#!/usr/bin/env node
import nodeModule from "node:module";
import { runProcess } from "./run.js";

// Node 22.8 and newer keep compiled code between runs; older ones have no such function.
(nodeModule as { enableCompileCache?: () => unknown }).enableCompileCache?.();
await runProcess(process);
