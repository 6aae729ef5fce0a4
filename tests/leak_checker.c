/* What the leak checker of sanitized programs is told. gcc 12's crashes on thread-local memory of
 * libraries that are opened at run time and stay (oneDNN, its OpenMP); ours holds no pointers
 * there, OpenMP does, and the loader keeps the name of what stays open. These are for a program to
 * define, never for a library. */
const char *__lsan_default_options(void);
__attribute__((visibility("default"))) const char *__lsan_default_options(void)
{
    return "use_tls=0:print_suppressions=0";
}

const char *__lsan_default_suppressions(void);
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void)
{
    return "leak:libgomp\nleak:ld-linux\n";
}
