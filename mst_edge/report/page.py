def write_report(run):
    return run.report_file
