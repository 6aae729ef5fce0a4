/* make_tiny_model FOLDER [KIND]: see tiny_model.h. */
#include "cli/tiny_model.h"

int main(int argc, char **argv)
{
    if (argc < 2) {
        fputs("usage: make_tiny_model FOLDER [plain | nan | vocabulary | no-bos]\n", stderr);
        return 2;
    }
    return tiny_model_write(argv[1], argc > 2 ? argv[2] : "plain") ? 0 : 1;
}
