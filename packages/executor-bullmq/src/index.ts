export { type BullmqExecutorOptions, createBullmqExecutor } from "./bullmq-executor.js";
export { type BullmqTransportOptions, connectBullmq, defaultQueue } from "./bullmq-transport.js";
export { type BullmqWorker, type BullmqWorkerOptions, startBullmqWorker } from "./bullmq-worker.js";
