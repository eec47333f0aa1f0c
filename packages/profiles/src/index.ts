export * from "./expert-lists.js";
export * from "./full-router.js";
export * from "./pick-profile.js";
export * from "./profile-file.js";
export * from "./profile-plan.js";
export * from "./profile-store.js";
export * from "./prompt-reader.js";
export { type LogitSums, type TaskStatistic, taskStatistics } from "./task-statistic.js";
